CREATE TABLE dbo.customers (
    id int IDENTITY(1,1) NOT NULL CONSTRAINT pk_customers PRIMARY KEY,
    name nvarchar(100) NOT NULL,
    email varchar(200) NOT NULL,
    tier varchar(10) NOT NULL,
    created_at datetime2(3) NOT NULL
);
CREATE TABLE dbo.addresses (
    id int IDENTITY(1,1) NOT NULL CONSTRAINT pk_addresses PRIMARY KEY,
    customer_id int NOT NULL CONSTRAINT fk_addresses_customers REFERENCES dbo.customers (id),
    street nvarchar(100) NOT NULL,
    city nvarchar(60) NOT NULL,
    postcode varchar(10) NULL,
    country char(2) NOT NULL
);
CREATE TABLE dbo.products (
    id int NOT NULL CONSTRAINT pk_products PRIMARY KEY,
    sku varchar(20) NOT NULL CONSTRAINT uq_products_sku UNIQUE,
    name nvarchar(100) NOT NULL,
    price decimal(10,2) NOT NULL,
    weight_kg decimal(8,3) NULL
);
CREATE TABLE dbo.orders (
    id int IDENTITY(1,1) NOT NULL CONSTRAINT pk_orders PRIMARY KEY,
    customer_id int NOT NULL CONSTRAINT fk_orders_customers REFERENCES dbo.customers (id),
    shipping_address_id int NULL CONSTRAINT fk_orders_addresses REFERENCES dbo.addresses (id),
    status varchar(12) NOT NULL,
    note nvarchar(200) NULL,
    placed_at datetime2(3) NOT NULL
);
CREATE TABLE dbo.order_items (
    id int IDENTITY(1,1) NOT NULL CONSTRAINT pk_order_items PRIMARY KEY,
    order_id int NOT NULL CONSTRAINT fk_order_items_orders REFERENCES dbo.orders (id),
    product_id int NOT NULL CONSTRAINT fk_order_items_products REFERENCES dbo.products (id),
    quantity int NOT NULL,
    amount decimal(12,2) NOT NULL
);
CREATE TABLE dbo.item_taxes (
    item_id int NOT NULL CONSTRAINT fk_item_taxes_order_items REFERENCES dbo.order_items (id),
    kind varchar(10) NOT NULL,
    rate decimal(5,2) NOT NULL,
    amount decimal(12,2) NOT NULL,
    CONSTRAINT pk_item_taxes PRIMARY KEY (item_id, kind)
);
CREATE TABLE dbo.payments (
    id uniqueidentifier NOT NULL CONSTRAINT pk_payments PRIMARY KEY,
    order_id int NOT NULL CONSTRAINT fk_payments_orders REFERENCES dbo.orders (id),
    method varchar(10) NOT NULL,
    amount money NOT NULL,
    paid_at datetimeoffset(3) NOT NULL
);
CREATE TABLE dbo.shipments (
    id bigint IDENTITY(1,1) NOT NULL CONSTRAINT pk_shipments PRIMARY KEY,
    order_id int NOT NULL CONSTRAINT fk_shipments_orders REFERENCES dbo.orders (id),
    carrier nvarchar(30) NOT NULL,
    tracking varchar(40) NOT NULL,
    shipped_at datetime NOT NULL,
    delivered_at datetime NULL
);
