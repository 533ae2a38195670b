//! The system views: their columns as SQL Server declares them, and the query over the catalog's tables that answers them.
//!
//! `{db}` in a query stands for the qualifier of the database's file.

use crate::translate::{Derived, DerivedColumn};
use crate::types;

/// One view: schema, name, columns (`name type`, `?` after the type: nullable), query.
type View = (&'static str, &'static str, &'static str, &'static str);

const OBJECT_COLUMNS: &str = "name sysname, object_id int, principal_id int?, schema_id int, parent_object_id int, type char(2)?, type_desc nvarchar(60)?, create_date datetime, modify_date datetime, is_ms_shipped bit, is_published bit, is_schema_published bit";

macro_rules! object_select {
    ($filter:literal) => {
        concat!(
            "SELECT o.name, o.object_id, NULL AS principal_id, s.schema_id, o.parent_object_id, o.type, CASE o.type WHEN 'U' THEN 'USER_TABLE' WHEN 'V' THEN 'VIEW' WHEN 'PK' THEN ",
            "'PRIMARY_KEY_CONSTRAINT' WHEN 'UQ' THEN 'UNIQUE_CONSTRAINT' WHEN 'F' THEN 'FOREIGN_KEY_CONSTRAINT' WHEN 'C' THEN 'CHECK_CONSTRAINT' WHEN 'D' THEN 'DEFAULT_CONSTRAINT' END AS type_desc, ",
            "o.create_date, o.modify_date, o.is_ms_shipped, 0 AS is_published, 0 AS is_schema_published FROM {db}\"~objects\" o JOIN {db}\"~schemas\" s ON s.name = o.schema", $filter
        )
    };
}

const VIEWS: &[View] = &[
    ("sys", "objects", OBJECT_COLUMNS, object_select!("")),
    ("sys", "all_objects", OBJECT_COLUMNS, object_select!("")),
    ("sys", "views", OBJECT_COLUMNS, object_select!(" WHERE o.type = 'V'")),
    ("sys", "procedures", OBJECT_COLUMNS, object_select!(" WHERE o.type = 'P'")),
    (
        "sys",
        "triggers",
        "name sysname, object_id int, parent_class tinyint, parent_class_desc nvarchar(60)?, parent_id int, type char(2), is_disabled bit",
        "SELECT NULL AS name, 0 AS object_id, 0 AS parent_class, NULL AS parent_class_desc, 0 AS parent_id, 'TR' AS type, 0 AS is_disabled WHERE 0",
    ),
    (
        "sys",
        "tables",
        "name sysname, object_id int, principal_id int?, schema_id int, parent_object_id int, type char(2)?, type_desc nvarchar(60)?, create_date datetime, modify_date datetime, is_ms_shipped bit, is_published bit, is_schema_published bit, lob_data_space_id int, filestream_data_space_id int?, max_column_id_used int, lock_on_bulk_load bit, uses_ansi_nulls bit?, is_replicated bit?, has_replication_filter bit?, is_merge_published bit?, is_sync_tran_subscribed bit?, has_unchecked_assembly_data bit, text_in_row_limit int?, large_value_types_out_of_row bit?, is_tracked_by_cdc bit?, lock_escalation tinyint?, lock_escalation_desc nvarchar(60)?, is_filetable bit?, is_memory_optimized bit?, durability tinyint?, durability_desc nvarchar(60)?, temporal_type tinyint?, temporal_type_desc nvarchar(60)?, history_table_id int?, is_external bit, is_node bit?, is_edge bit?",
        concat!(
            "SELECT o.*, 0 AS lob_data_space_id, NULL AS filestream_data_space_id, (SELECT max(column_id) FROM {db}\"~columns\" c WHERE c.object_id = o.object_id) AS max_column_id_used, 0 AS lock_on_bulk_load, 1 AS uses_ansi_nulls, 0 AS is_replicated, 0 AS has_replication_filter, 0 AS is_merge_published, 0 AS is_sync_tran_subscribed, 0 AS has_unchecked_assembly_data, 0 AS text_in_row_limit, 0 AS large_value_types_out_of_row, EXISTS (SELECT 1 FROM {db}\"__cdc_instance\" i WHERE i.source_object_id = o.object_id) AS is_tracked_by_cdc, 0 AS lock_escalation, 'TABLE' AS lock_escalation_desc, 0 AS is_filetable, 0 AS is_memory_optimized, 0 AS durability, 'SCHEMA_AND_DATA' AS durability_desc, 0 AS temporal_type, 'NON_TEMPORAL_TABLE' AS temporal_type_desc, NULL AS history_table_id, 0 AS is_external, 0 AS is_node, 0 AS is_edge FROM (",
            object_select!(" WHERE o.type = 'U'"),
            ") o"
        ),
    ),
    (
        "sys",
        "schemas",
        "name sysname, schema_id int, principal_id int?",
        "SELECT name, schema_id, principal_id FROM {db}\"~schemas\"",
    ),
    ("sys", "columns", COLUMNS, COLUMNS_SQL),
    ("sys", "all_columns", COLUMNS, COLUMNS_SQL),
    (
        "sys",
        "computed_columns",
        "object_id int, name sysname?, column_id int, definition nvarchar(max)?, uses_database_collation bit, is_persisted bit, is_nullable bit?, is_computed bit",
        "SELECT object_id, name, column_id, computed AS definition, 1 AS uses_database_collation, persisted AS is_persisted, nullable AS is_nullable, 1 AS is_computed FROM {db}\"~columns\" WHERE computed IS NOT NULL",
    ),
    (
        "sys",
        "identity_columns",
        "object_id int, name sysname?, column_id int, is_identity bit, seed_value bigint?, increment_value bigint?, last_value bigint?, is_not_for_replication bit?",
        "SELECT object_id, name, column_id, 1 AS is_identity, seed AS seed_value, increment AS increment_value, last_value, 0 AS is_not_for_replication FROM {db}\"~columns\" WHERE seed IS NOT NULL",
    ),
    (
        "sys",
        "default_constraints",
        "name sysname, object_id int, schema_id int, parent_object_id int, type char(2)?, type_desc nvarchar(60)?, parent_column_id int, definition nvarchar(max)?, is_system_named bit, create_date datetime, modify_date datetime",
        "SELECT o.name, o.object_id, s.schema_id, o.parent_object_id, 'D' AS type, 'DEFAULT_CONSTRAINT' AS type_desc, c.column_id AS parent_column_id, o.definition, 0 AS is_system_named, o.create_date, o.modify_date FROM {db}\"~objects\" o JOIN {db}\"~schemas\" s ON s.name = o.schema JOIN {db}\"~columns\" c ON c.object_id = o.parent_object_id AND c.default_id = o.object_id WHERE o.type = 'D'",
    ),
    (
        "sys",
        "check_constraints",
        "name sysname, object_id int, schema_id int, parent_object_id int, type char(2)?, type_desc nvarchar(60)?, is_disabled bit, parent_column_id int, definition nvarchar(max)?, is_not_trusted bit, is_system_named bit",
        "SELECT o.name, o.object_id, s.schema_id, o.parent_object_id, 'C' AS type, 'CHECK_CONSTRAINT' AS type_desc, 0 AS is_disabled, 0 AS parent_column_id, o.definition, 0 AS is_not_trusted, 0 AS is_system_named FROM {db}\"~objects\" o JOIN {db}\"~schemas\" s ON s.name = o.schema WHERE o.type = 'C'",
    ),
    (
        "sys",
        "key_constraints",
        "name sysname, object_id int, schema_id int, parent_object_id int, type char(2)?, type_desc nvarchar(60)?, create_date datetime, modify_date datetime, is_ms_shipped bit, unique_index_id int?, is_system_named bit, is_enforced bit",
        "SELECT o.name, o.object_id, s.schema_id, o.parent_object_id, o.type, CASE o.type WHEN 'PK' THEN 'PRIMARY_KEY_CONSTRAINT' ELSE 'UNIQUE_CONSTRAINT' END AS type_desc, o.create_date, o.modify_date, 0 AS is_ms_shipped, (SELECT i.index_id FROM {db}\"~indexes\" i WHERE i.object_id = o.parent_object_id AND i.name = o.name) AS unique_index_id, 0 AS is_system_named, 1 AS is_enforced FROM {db}\"~objects\" o JOIN {db}\"~schemas\" s ON s.name = o.schema WHERE o.type IN ('PK', 'UQ')",
    ),
    (
        "sys",
        "foreign_keys",
        "name sysname, object_id int, principal_id int?, schema_id int, parent_object_id int, type char(2)?, type_desc nvarchar(60)?, create_date datetime, modify_date datetime, is_ms_shipped bit, referenced_object_id int?, key_index_id int?, is_disabled bit, is_not_for_replication bit, is_not_trusted bit, delete_referential_action tinyint?, delete_referential_action_desc nvarchar(60)?, update_referential_action tinyint?, update_referential_action_desc nvarchar(60)?, is_system_named bit",
        "SELECT o.name, o.object_id, NULL AS principal_id, s.schema_id, o.parent_object_id, 'F' AS type, 'FOREIGN_KEY_CONSTRAINT' AS type_desc, o.create_date, o.modify_date, 0 AS is_ms_shipped, f.referenced_object_id, f.key_index_id, 0 AS is_disabled, 0 AS is_not_for_replication, 0 AS is_not_trusted, f.on_delete AS delete_referential_action, CASE f.on_delete WHEN 1 THEN 'CASCADE' WHEN 2 THEN 'SET_NULL' WHEN 3 THEN 'SET_DEFAULT' ELSE 'NO_ACTION' END AS delete_referential_action_desc, f.on_update AS update_referential_action, CASE f.on_update WHEN 1 THEN 'CASCADE' WHEN 2 THEN 'SET_NULL' WHEN 3 THEN 'SET_DEFAULT' ELSE 'NO_ACTION' END AS update_referential_action_desc, 0 AS is_system_named FROM {db}\"~objects\" o JOIN {db}\"~schemas\" s ON s.name = o.schema JOIN {db}\"~fks\" f ON f.object_id = o.object_id",
    ),
    (
        "sys",
        "foreign_key_columns",
        "constraint_object_id int, constraint_column_id int, parent_object_id int, parent_column_id int, referenced_object_id int, referenced_column_id int",
        "SELECT c.object_id AS constraint_object_id, c.ordinal AS constraint_column_id, f.parent_object_id, c.parent_column_id, f.referenced_object_id, c.referenced_column_id FROM {db}\"~fk_columns\" c JOIN {db}\"~fks\" f ON f.object_id = c.object_id",
    ),
    (
        "sys",
        "indexes",
        "object_id int, name sysname?, index_id int, type tinyint, type_desc nvarchar(60)?, is_unique bit?, data_space_id int?, ignore_dup_key bit?, is_primary_key bit?, is_unique_constraint bit?, fill_factor tinyint, is_padded bit?, is_disabled bit?, is_hypothetical bit?, is_ignored_in_optimization bit?, allow_row_locks bit?, allow_page_locks bit?, has_filter bit?, filter_definition nvarchar(max)?",
        "SELECT object_id, name, index_id, type, CASE type WHEN 0 THEN 'HEAP' WHEN 1 THEN 'CLUSTERED' ELSE 'NONCLUSTERED' END AS type_desc, is_unique, 1 AS data_space_id, 0 AS ignore_dup_key, is_primary_key, is_unique_constraint, 0 AS fill_factor, 0 AS is_padded, 0 AS is_disabled, 0 AS is_hypothetical, 0 AS is_ignored_in_optimization, 1 AS allow_row_locks, 1 AS allow_page_locks, filter IS NOT NULL AS has_filter, filter AS filter_definition FROM {db}\"~indexes\"",
    ),
    (
        "sys",
        "index_columns",
        "object_id int, index_id int, index_column_id int, column_id int, key_ordinal tinyint, partition_ordinal tinyint, is_descending_key bit?, is_included_column bit?, column_store_order_ordinal tinyint",
        "SELECT object_id, index_id, index_column_id, column_id, key_ordinal, 0 AS partition_ordinal, descending AS is_descending_key, included AS is_included_column, 0 AS column_store_order_ordinal FROM {db}\"~index_columns\"",
    ),
    (
        "sys",
        "types",
        "name sysname, system_type_id tinyint, user_type_id int, schema_id int, principal_id int?, max_length smallint, precision tinyint, scale tinyint, collation_name sysname?, is_nullable bit?, is_user_defined bit, is_assembly_type bit, default_object_id int, rule_object_id int, is_table_type bit",
        TYPES_SQL,
    ),
    (
        "sys",
        "sql_modules",
        "object_id int, definition nvarchar(max)?, uses_ansi_nulls bit?, uses_quoted_identifier bit?, is_schema_bound bit?",
        "SELECT object_id, definition, 1 AS uses_ansi_nulls, 1 AS uses_quoted_identifier, 0 AS is_schema_bound FROM {db}\"~objects\" WHERE type = 'V'",
    ),
    (
        "sys",
        "extended_properties",
        "class tinyint, class_desc nvarchar(60)?, major_id int, minor_id int, name sysname, value sql_variant?",
        "SELECT 0 AS class, NULL AS class_desc, 0 AS major_id, 0 AS minor_id, '' AS name, NULL AS value WHERE 0",
    ),
    (
        "sys",
        "synonyms",
        "name sysname, object_id int, schema_id int, base_object_name nvarchar(1035)?",
        "SELECT '' AS name, 0 AS object_id, 0 AS schema_id, NULL AS base_object_name WHERE 0",
    ),
    (
        "sys",
        "change_tracking_tables",
        "object_id int, is_track_columns_updated_on bit?",
        "SELECT 0 AS object_id, 0 AS is_track_columns_updated_on WHERE 0",
    ),
    (
        "sys",
        "database_principals",
        "name sysname, principal_id int, type char(1), type_desc nvarchar(60)?, default_schema_name sysname?, create_date datetime, modify_date datetime, owning_principal_id int?, is_fixed_role bit",
        "SELECT name, principal_id, type, iif(type = 'R', 'DATABASE_ROLE', 'SQL_USER') AS type_desc, iif(type = 'R', NULL, 'dbo') AS default_schema_name, create_date, create_date AS modify_date, NULL AS owning_principal_id, principal_id >= 16384 AND principal_id < 16400 AS is_fixed_role FROM {db}\"~principals\"",
    ),
    (
        "sys",
        "database_role_members",
        "role_principal_id int, member_principal_id int",
        "SELECT role_id AS role_principal_id, member_id AS member_principal_id FROM {db}\"~members\"",
    ),
    (
        "sys",
        "database_permissions",
        "class tinyint, class_desc nvarchar(60)?, major_id int, minor_id int, grantee_principal_id int, permission_name nvarchar(128)?, state char(1), state_desc nvarchar(60)?",
        "SELECT CASE class WHEN 'OBJECT' THEN 1 WHEN 'SCHEMA' THEN 3 ELSE 0 END AS class, CASE class WHEN 'OBJECT' THEN 'OBJECT_OR_COLUMN' ELSE class END AS class_desc, major_id, 0 AS minor_id, grantee AS grantee_principal_id, permission AS permission_name, state, CASE state WHEN 'G' THEN 'GRANT' ELSE 'DENY' END AS state_desc FROM {db}\"~permissions\"",
    ),
    (
        "sys",
        "sysobjects",
        "name sysname, id int, xtype char(2), uid smallint?, type char(2)?, crdate datetime, parent_obj int",
        "SELECT o.name, o.object_id AS id, o.type AS xtype, s.schema_id AS uid, o.type, o.create_date AS crdate, o.parent_object_id AS parent_obj FROM {db}\"~objects\" o JOIN {db}\"~schemas\" s ON s.name = o.schema",
    ),
    (
        "INFORMATION_SCHEMA",
        "SCHEMATA",
        "CATALOG_NAME nvarchar(128)?, SCHEMA_NAME nvarchar(128), SCHEMA_OWNER nvarchar(128)?",
        "SELECT '{name}' AS CATALOG_NAME, name AS SCHEMA_NAME, 'dbo' AS SCHEMA_OWNER FROM {db}\"~schemas\"",
    ),
    (
        "INFORMATION_SCHEMA",
        "TABLES",
        "TABLE_CATALOG nvarchar(128)?, TABLE_SCHEMA nvarchar(128)?, TABLE_NAME sysname, TABLE_TYPE varchar(10)?",
        "SELECT '{name}' AS TABLE_CATALOG, schema AS TABLE_SCHEMA, name AS TABLE_NAME, iif(type = 'U', 'BASE TABLE', 'VIEW') AS TABLE_TYPE FROM {db}\"~objects\" WHERE type IN ('U', 'V')",
    ),
    (
        "INFORMATION_SCHEMA",
        "VIEWS",
        "TABLE_CATALOG nvarchar(128)?, TABLE_SCHEMA nvarchar(128)?, TABLE_NAME sysname, VIEW_DEFINITION nvarchar(4000)?",
        "SELECT '{name}' AS TABLE_CATALOG, schema AS TABLE_SCHEMA, name AS TABLE_NAME, definition AS VIEW_DEFINITION FROM {db}\"~objects\" WHERE type = 'V'",
    ),
    (
        "INFORMATION_SCHEMA",
        "COLUMNS",
        "TABLE_CATALOG nvarchar(128)?, TABLE_SCHEMA nvarchar(128)?, TABLE_NAME sysname, COLUMN_NAME sysname?, ORDINAL_POSITION int, COLUMN_DEFAULT nvarchar(4000)?, IS_NULLABLE varchar(3)?, DATA_TYPE nvarchar(128)?, CHARACTER_MAXIMUM_LENGTH int?, CHARACTER_OCTET_LENGTH int?, NUMERIC_PRECISION tinyint?, NUMERIC_PRECISION_RADIX smallint?, NUMERIC_SCALE int?, DATETIME_PRECISION smallint?, CHARACTER_SET_NAME sysname?, COLLATION_NAME sysname?",
        "SELECT '{name}' AS TABLE_CATALOG, o.schema AS TABLE_SCHEMA, o.name AS TABLE_NAME, c.name AS COLUMN_NAME, c.column_id AS ORDINAL_POSITION, c.default_text AS COLUMN_DEFAULT, iif(c.nullable, 'YES', 'NO') AS IS_NULLABLE, CASE WHEN c.user_type_id > 256 THEN (SELECT t.base FROM {db}\"~types\" t WHERE t.user_type_id = c.user_type_id) WHEN c.type_name = 'sysname' THEN 'nvarchar' WHEN c.type_name LIKE 'vector(%' THEN 'vector' ELSE c.type_name END AS DATA_TYPE, CASE WHEN c.system_type_id IN (231, 239) THEN iif(c.max_length < 0, -1, c.max_length / 2) WHEN c.system_type_id IN (167, 175, 165, 173, 241) THEN c.max_length WHEN c.system_type_id IN (35, 34) THEN 2147483647 WHEN c.system_type_id = 99 THEN 1073741823 END AS CHARACTER_MAXIMUM_LENGTH, CASE WHEN c.system_type_id IN (231, 239, 167, 175, 165, 173, 241) THEN c.max_length END AS CHARACTER_OCTET_LENGTH, CASE WHEN c.system_type_id IN (48, 52, 56, 127, 106, 108, 60, 122, 62, 59) THEN c.precision END AS NUMERIC_PRECISION, CASE WHEN c.system_type_id IN (62, 59) THEN 2 WHEN c.system_type_id IN (48, 52, 56, 127, 106, 108, 60, 122) THEN 10 END AS NUMERIC_PRECISION_RADIX, CASE WHEN c.system_type_id IN (48, 52, 56, 127, 106, 108, 60, 122) THEN c.scale END AS NUMERIC_SCALE, CASE WHEN c.system_type_id IN (40) THEN 0 WHEN c.system_type_id IN (41, 42, 43, 61, 58) THEN c.scale END AS DATETIME_PRECISION, NULL AS CHARACTER_SET_NAME, c.collation AS COLLATION_NAME FROM {db}\"~columns\" c JOIN {db}\"~objects\" o ON o.object_id = c.object_id",
    ),
    (
        "INFORMATION_SCHEMA",
        "TABLE_CONSTRAINTS",
        "CONSTRAINT_CATALOG nvarchar(128)?, CONSTRAINT_SCHEMA nvarchar(128)?, CONSTRAINT_NAME sysname, TABLE_CATALOG nvarchar(128)?, TABLE_SCHEMA nvarchar(128)?, TABLE_NAME sysname?, CONSTRAINT_TYPE varchar(11)?, IS_DEFERRABLE varchar(2), INITIALLY_DEFERRED varchar(2)",
        "SELECT '{name}' AS CONSTRAINT_CATALOG, o.schema AS CONSTRAINT_SCHEMA, o.name AS CONSTRAINT_NAME, '{name}' AS TABLE_CATALOG, t.schema AS TABLE_SCHEMA, t.name AS TABLE_NAME, CASE o.type WHEN 'PK' THEN 'PRIMARY KEY' WHEN 'UQ' THEN 'UNIQUE' WHEN 'F' THEN 'FOREIGN KEY' ELSE 'CHECK' END AS CONSTRAINT_TYPE, 'NO' AS IS_DEFERRABLE, 'NO' AS INITIALLY_DEFERRED FROM {db}\"~objects\" o JOIN {db}\"~objects\" t ON t.object_id = o.parent_object_id WHERE o.type IN ('PK', 'UQ', 'F', 'C')",
    ),
    (
        "INFORMATION_SCHEMA",
        "KEY_COLUMN_USAGE",
        "CONSTRAINT_CATALOG nvarchar(128)?, CONSTRAINT_SCHEMA nvarchar(128)?, CONSTRAINT_NAME nvarchar(128), TABLE_CATALOG nvarchar(128)?, TABLE_SCHEMA nvarchar(128)?, TABLE_NAME nvarchar(128), COLUMN_NAME nvarchar(128)?, ORDINAL_POSITION int",
        "SELECT '{name}' AS CONSTRAINT_CATALOG, t.schema AS CONSTRAINT_SCHEMA, i.name AS CONSTRAINT_NAME, '{name}' AS TABLE_CATALOG, t.schema AS TABLE_SCHEMA, t.name AS TABLE_NAME, c.name AS COLUMN_NAME, ic.key_ordinal AS ORDINAL_POSITION FROM {db}\"~indexes\" i JOIN {db}\"~objects\" t ON t.object_id = i.object_id JOIN {db}\"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id AND ic.included = 0 JOIN {db}\"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id WHERE i.is_primary_key = 1 OR i.is_unique_constraint = 1 UNION ALL SELECT '{name}', o.schema, o.name, '{name}', t.schema, t.name, c.name, k.ordinal FROM {db}\"~fks\" f JOIN {db}\"~objects\" o ON o.object_id = f.object_id JOIN {db}\"~objects\" t ON t.object_id = f.parent_object_id JOIN {db}\"~fk_columns\" k ON k.object_id = f.object_id JOIN {db}\"~columns\" c ON c.object_id = f.parent_object_id AND c.column_id = k.parent_column_id",
    ),
    (
        "INFORMATION_SCHEMA",
        "REFERENTIAL_CONSTRAINTS",
        "CONSTRAINT_CATALOG nvarchar(128)?, CONSTRAINT_SCHEMA nvarchar(128)?, CONSTRAINT_NAME sysname, UNIQUE_CONSTRAINT_CATALOG nvarchar(128)?, UNIQUE_CONSTRAINT_SCHEMA nvarchar(128)?, UNIQUE_CONSTRAINT_NAME sysname?, MATCH_OPTION varchar(7)?, UPDATE_RULE varchar(11)?, DELETE_RULE varchar(11)?",
        "SELECT '{name}' AS CONSTRAINT_CATALOG, o.schema AS CONSTRAINT_SCHEMA, o.name AS CONSTRAINT_NAME, '{name}' AS UNIQUE_CONSTRAINT_CATALOG, r.schema AS UNIQUE_CONSTRAINT_SCHEMA, (SELECT i.name FROM {db}\"~indexes\" i WHERE i.object_id = f.referenced_object_id AND i.is_primary_key = 1) AS UNIQUE_CONSTRAINT_NAME, 'SIMPLE' AS MATCH_OPTION, CASE f.on_update WHEN 1 THEN 'CASCADE' WHEN 2 THEN 'SET NULL' WHEN 3 THEN 'SET DEFAULT' ELSE 'NO ACTION' END AS UPDATE_RULE, CASE f.on_delete WHEN 1 THEN 'CASCADE' WHEN 2 THEN 'SET NULL' WHEN 3 THEN 'SET DEFAULT' ELSE 'NO ACTION' END AS DELETE_RULE FROM {db}\"~fks\" f JOIN {db}\"~objects\" o ON o.object_id = f.object_id JOIN {db}\"~objects\" r ON r.object_id = f.referenced_object_id",
    ),
];

const COLUMNS: &str = "object_id int, name sysname?, column_id int, system_type_id tinyint, user_type_id int, max_length smallint, precision tinyint, scale tinyint, collation_name sysname?, is_nullable bit?, is_ansi_padded bit, is_rowguidcol bit, is_identity bit, is_computed bit, is_filestream bit, is_replicated bit?, is_non_sql_subscribed bit?, is_merge_published bit?, is_dts_replicated bit?, is_xml_document bit, xml_collection_id int, default_object_id int, rule_object_id int, is_sparse bit?, is_column_set bit?, generated_always_type tinyint?, generated_always_type_desc nvarchar(60)?, encryption_type int?, is_hidden bit?, is_masked bit";
const COLUMNS_SQL: &str = "SELECT object_id, name, column_id, system_type_id, user_type_id, max_length, precision, scale, collation AS collation_name, nullable AS is_nullable, 1 AS is_ansi_padded, rowguid AS is_rowguidcol, seed IS NOT NULL AS is_identity, computed IS NOT NULL AS is_computed, 0 AS is_filestream, 0 AS is_replicated, 0 AS is_non_sql_subscribed, 0 AS is_merge_published, 0 AS is_dts_replicated, 0 AS is_xml_document, 0 AS xml_collection_id, default_id AS default_object_id, 0 AS rule_object_id, 0 AS is_sparse, 0 AS is_column_set, 0 AS generated_always_type, 'NOT_APPLICABLE' AS generated_always_type_desc, NULL AS encryption_type, 0 AS is_hidden, 0 AS is_masked FROM {db}\"~columns\"";

/// User type ids and names.
pub(crate) const TYPE_IDS: &[(i32, &str)] = &[
    (34, "image"),
    (35, "text"),
    (36, "uniqueidentifier"),
    (40, "date"),
    (41, "time"),
    (42, "datetime2"),
    (43, "datetimeoffset"),
    (48, "tinyint"),
    (52, "smallint"),
    (56, "int"),
    (58, "smalldatetime"),
    (59, "real"),
    (60, "money"),
    (61, "datetime"),
    (62, "float"),
    (98, "sql_variant"),
    (99, "ntext"),
    (104, "bit"),
    (106, "decimal"),
    (108, "numeric"),
    (122, "smallmoney"),
    (127, "bigint"),
    (128, "hierarchyid"),
    (129, "geometry"),
    (130, "geography"),
    (165, "varbinary"),
    (167, "varchar"),
    (173, "binary"),
    (175, "char"),
    (189, "timestamp"),
    (231, "nvarchar"),
    (239, "nchar"),
    (241, "xml"),
    (244, "json"),
    (255, "vector"),
    (256, "sysname"),
];

/// Answered by [`types_sql`].
const TYPES_SQL: &str = "";

fn types_sql() -> String {
    let rows: Vec<String> = TYPE_IDS
        .iter()
        .map(|(id, name)| {
            let system = match id { 128..=130 => 240, 255 => 165, 256 => 231, id => *id };
            let (length, precision, scale) = match *name {
                "varchar" | "char" | "varbinary" | "binary" => (8000, 0, 0),
                "nvarchar" | "nchar" | "vector" => (8000, 0, 0),
                "decimal" | "numeric" => (17, 38, 38),
                "time" => (5, 16, 7),
                "datetime2" => (8, 27, 7),
                "datetimeoffset" => (10, 34, 7),
                other => types::parse(other, 1).map_or((0, 0, 0), |d| {
                    let f = super::type_facts(&d.data_type, &d.name);
                    (f.2, f.3, f.4)
                }),
            };
            let collation = if matches!(*name, "char" | "varchar" | "text" | "nchar" | "nvarchar" | "ntext" | "sysname") { format!("'{}'", super::DEFAULT_COLLATION) } else { "NULL".into() };
            let nullable = u8::from(*name != "sysname" && *name != "timestamp");
            let assembly = u8::from(system == 240);
            format!("('{name}', {system}, {id}, 4, NULL, {length}, {precision}, {scale}, {collation}, {nullable}, 0, {assembly}, 0, 0, 0)")
        })
        .collect();
    format!(
        "SELECT column1 AS name, column2 AS system_type_id, column3 AS user_type_id, column4 AS schema_id, column5 AS principal_id, column6 AS max_length, column7 AS precision, column8 AS scale, \
         column9 AS collation_name, column10 AS is_nullable, column11 AS is_user_defined, column12 AS is_assembly_type, column13 AS default_object_id, column14 AS rule_object_id, \
         column15 AS is_table_type FROM (VALUES {}) UNION ALL SELECT t.name, t.system_type_id, t.user_type_id, s.schema_id, NULL, t.max_length, t.precision, t.scale, \
         iif(t.system_type_id IN (35, 99, 167, 175, 231, 239), '{}', NULL), t.nullable, 1, 0, 0, 0, 0 FROM {{db}}\"~types\" t JOIN {{db}}\"~schemas\" s ON s.name = t.schema",
        rows.join(", "),
        super::DEFAULT_COLLATION
    )
}

/// Columns from their specification.
pub(crate) fn columns(spec: &str) -> Vec<DerivedColumn> {
    types::split_declarations(spec)
        .iter()
        .filter_map(|p| {
            let (name, declared) = p.trim().split_once(' ')?;
            let nullable = declared.ends_with('?');
            let declared = types::parse(declared.trim_end_matches('?'), 1).ok()?;
            Some(DerivedColumn { name: name.to_string(), data_type: declared.data_type, nullable, wrap: None })
        })
        .collect()
}

/// A view over the catalog of one database.
pub(crate) fn find(database: &str, schema: &str, name: &str) -> Option<Derived> {
    let (_, found, spec, sql) = VIEWS.iter().find(|v| v.0.eq_ignore_ascii_case(schema) && v.1.eq_ignore_ascii_case(name))?;
    let sql = if *found == "types" { types_sql() } else { sql.replace("{name}", &database.replace('\'', "''")) };
    Some(Derived { sql, columns: columns(spec), volatile: false })
}

/// A relation of change data capture: its datetimes and ids are kept as text.
pub(crate) fn from_cdc(select: &cdc::Select) -> Derived {
    let columns = select
        .columns
        .iter()
        .filter_map(|c| {
            let data_type = types::parse(&c.type_name, 1).ok()?.data_type;
            let wrap = match data_type {
                tds::DataType::DateTime => Some("cdt({})"),
                // cv(x, varchar(max), uniqueidentifier)
                tds::DataType::UniqueIdentifier => Some("cv({}, 16776973, 21, 0)"),
                _ => None,
            };
            Some(DerivedColumn { name: c.name.clone(), data_type, nullable: true, wrap })
        })
        .collect();
    Derived { sql: select.sql.clone(), columns, volatile: true }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_view_answers_the_columns_it_declares() {
        let db = rusqlite::Connection::open_in_memory().unwrap();
        super::super::install(&db, 0).unwrap();
        cdc::install(&db, "shop").unwrap();
        for (schema, name, _, _) in VIEWS {
            let view = find("shop", schema, name).unwrap();
            let sql = view.sql.replace("{db}", "main.");
            let statement = db.prepare(&sql).unwrap_or_else(|e| panic!("{schema}.{name}: {e}"));
            let names: Vec<String> = statement.column_names().iter().map(|n| n.to_string()).collect();
            for c in &view.columns {
                assert!(names.iter().any(|n| n.eq_ignore_ascii_case(&c.name)), "{schema}.{name} lacks {}", c.name);
            }
        }
    }

    #[test]
    fn the_code_of_text_in_wrapped_columns_is_that_of_varchar_max() {
        assert_eq!(types::code(&tds::DataType::VarChar(tds::Length::Max)), 16_776_973);
        assert_eq!(types::code(&tds::DataType::UniqueIdentifier), 21);
    }
}
