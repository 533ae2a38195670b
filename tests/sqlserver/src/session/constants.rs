//! What the session knows of itself and of the server: global variables, properties, and the views of the server's own state.

use tds::{DataType, Isolation, Length, SqlError, Value};

use super::{Session, fault};
use crate::catalog::{self, same, views};
use crate::server::SERVER_NAME;
use crate::translate::{Derived, literal};
use crate::types::convert::{Mode, convert};
use crate::types::date::TICKS_PER_DAY;

const SYSNAME: DataType = DataType::NVarChar(Length::Limited(128));

const VERSION: &str = "Microsoft SQL Server 2022 (RTM-CU14) - 16.0.4135.4 (X64) - Tributary's stand-in, not a Microsoft product\n\tDeveloper Edition (64-bit) on Linux";

fn text(s: impl Into<String>) -> Option<(Value, DataType)> {
    Some((Value::Text(s.into()), SYSNAME))
}

fn int(i: i64) -> Option<(Value, DataType)> {
    Some((Value::Int(i), DataType::Int))
}

fn variant(value: Value, t: DataType) -> Option<(Value, DataType)> {
    Some((Value::Variant(Box::new((t, value))), DataType::SqlVariant))
}

fn variant_text(s: &str) -> Option<(Value, DataType)> {
    variant(Value::Text(s.into()), SYSNAME)
}

fn null() -> Option<(Value, DataType)> {
    Some((Value::Null, DataType::Int))
}

/// A moment as a literal of `datetime`.
pub(super) fn datetime(ticks: i64) -> String {
    let day = TICKS_PER_DAY as i64;
    let v = Value::DateTime { days: ticks.div_euclid(day) as u32, ticks: ticks.rem_euclid(day) as u64 };
    let v = convert(v, &DataType::DateTime2 { scale: 7 }, &DataType::DateTime, 0, Mode::Cast).unwrap_or(Value::Null);
    literal(&v, &DataType::DateTime)
}

impl Session {
    pub(super) fn session_constant(&self, name: &str) -> Option<(Value, DataType)> {
        let mut parts = name.split('\u{1}');
        let head = parts.next().unwrap_or_default().to_ascii_lowercase();
        let arguments: Vec<&str> = parts.collect();
        let first = arguments.first().copied().unwrap_or_default();
        match head.as_str() {
            "@@version" => Some((Value::Text(VERSION.into()), DataType::NVarChar(Length::Limited(300)))),
            "@@servername" => text(SERVER_NAME),
            "@@servicename" => text("MSSQLSERVER"),
            "@@spid" => Some((Value::Int(self.spid), DataType::SmallInt)),
            "@@language" => text("us_english"),
            "@@langid" => Some((Value::Int(0), DataType::SmallInt)),
            "@@datefirst" => Some((Value::Int(7), DataType::TinyInt)),
            "@@max_precision" => Some((Value::Int(38), DataType::TinyInt)),
            "@@microsoftversion" => int(0x1000_1027),
            "@@nestlevel" | "@@procid" | "@@cursor_rows" | "@@connections" | "@@timeticks" => int(0),
            "@@max_connections" => int(32767),
            "@@textsize" => int(2_147_483_647),
            "@@remserver" => null(),
            "system_user" | "suser_sname" | "suser_name" | "original_login()" | "suser_sname()" | "suser_name()" => {
                text(if first.is_empty() { self.login.clone() } else { "sa".into() })
            }
            "current_user" | "session_user" | "user" | "user_name" | "user_name()" => {
                text(self.user(&self.current()).ok().flatten().map_or_else(|| "guest".into(), |u| u.1))
            }
            "user_id" | "user_id()" => int(self.user(&self.current()).ok().flatten().map_or(2, |u| u.0)),
            "suser_id" | "suser_id()" => int(if self.sysadmin { 1 } else { 256 + self.spid % 100 }),
            "suser_sid" | "suser_sid()" => Some((Value::Bytes(vec![1]), DataType::VarBinary(Length::Limited(85)))),
            "current_timezone_id()" => {
                Some((Value::Text(self.shared.clock.zone_names().0), DataType::VarChar(Length::Limited(128))))
            }
            "current_timezone()" => {
                Some((Value::Text(self.shared.clock.zone_names().1), DataType::VarChar(Length::Limited(128))))
            }
            "host_name()" => text(self.host.clone()),
            "host_id()" => text("0"),
            "app_name()" => text(self.program.clone()),
            "original_db_name" | "original_db_name()" => text(self.initial_database.clone()),
            "db_name" | "db_name()" if first.is_empty() => text(self.current()),
            "db_name" => {
                match first.parse::<i64>().ok().and_then(|id| self.shared.databases().into_iter().find(|d| d.id == id)) {
                    Some(d) => text(d.name),
                    None => Some((Value::Null, SYSNAME)),
                }
            }
            "db_id" | "db_id()" => {
                let name = if first.is_empty() { self.current() } else { first.to_string() };
                Some((self.shared.database(&name).map_or(Value::Null, |d| Value::Int(d.id)), DataType::SmallInt))
            }
            "serverproperty" if first.eq_ignore_ascii_case("IsHadrEnabled") => {
                variant(Value::Int(i64::from(self.shared.availability().is_some())), DataType::Int)
            }
            "serverproperty" => server_property(first),
            "fn_hadr_is_primary_replica" => {
                let primary = self.shared.availability().filter(|_| self.shared.database(first).is_some()).map(|a| a.primary);
                Some((primary.map_or(Value::Null, Value::Bit), DataType::Bit))
            }
            "databasepropertyex" => self.database_property(first, arguments.get(1).copied().unwrap_or_default()),
            "has_dbaccess" => int(i64::from(self.shared.database(first).is_some_and(|d| self.check_access(&d.name).is_ok()))),
            "is_srvrolemember" => int(i64::from(self.has_server_role(first))),
            "is_member" | "is_rolemember" => int(i64::from(self.has_role(first))),
            "has_perms_by_name" => self.has_permission(&arguments),
            "connectionproperty" => match first.to_ascii_lowercase().as_str() {
                "net_transport" => variant_text("TCP"),
                "protocol_type" => variant_text("TSQL"),
                "auth_scheme" => variant_text("SQL"),
                "local_net_address" | "client_net_address" => variant_text("127.0.0.1"),
                "local_tcp_port" => {
                    variant(Value::Int(self.shared.address().map_or(1433, |a| i64::from(a.port()))), DataType::Int)
                }
                _ => variant_null(),
            },
            "collationproperty" => {
                let Some(collation) = tds::Collation::named(first) else { return variant_null() };
                let int = |n: i64| variant(Value::Int(n), DataType::Int);
                match arguments.get(1).map(|p| p.to_ascii_lowercase()).as_deref() {
                    Some("codepage") => int(i64::from(collation.code_page())),
                    Some("lcid") => int(i64::from(u16::from_le_bytes([collation.0[0], collation.0[1]]))),
                    Some("comparisonstyle") => int(196_609),
                    _ => variant_null(),
                }
            }
            "sessionproperty" | "session_context" | "fulltextserviceproperty" => variant_null(),
            _ => None,
        }
    }

    fn database_property(&self, name: &str, property: &str) -> Option<(Value, DataType)> {
        self.shared.database(name)?;
        match property.to_ascii_lowercase().as_str() {
            "collation" => variant_text(catalog::DEFAULT_COLLATION),
            "status" => variant_text("ONLINE"),
            "updateability" => variant_text(if self.shared.is_secondary() { "READ_ONLY" } else { "READ_WRITE" }),
            "useraccess" => variant_text("MULTI_USER"),
            "recovery" => variant_text("FULL"),
            "version" => variant(Value::Int(957), DataType::Int),
            _ => variant_null(),
        }
    }

    fn has_server_role(&self, role: &str) -> bool {
        self.sysadmin
            || same(role, "public")
            || self.shared.login(&self.login).is_some_and(|l| l.roles.iter().any(|r| same(r, role)))
    }

    pub(super) fn has_role(&self, role: &str) -> bool {
        let current = self.current();
        let Ok(Some((user, _))) = self.user(&current) else { return false };
        if user == 1 {
            return same(role, "db_owner") || same(role, "public") || same(role, "dbo");
        }
        self.with(&current, |l| catalog::security::roles_of(&l.db, user).map_err(|e| fault::from_sqlite(&e)))
            .is_ok_and(|r| r.iter().any(|(_, n)| same(n, role)))
    }

    /// HAS_PERMS_BY_NAME(securable, class, permission).
    fn has_permission(&self, arguments: &[&str]) -> Option<(Value, DataType)> {
        let (securable, class) =
            (arguments.first().copied().unwrap_or_default(), arguments.get(1).copied().unwrap_or_default().to_ascii_uppercase());
        let permission = arguments.get(2).copied().unwrap_or_default().to_ascii_uppercase();
        if self.sysadmin {
            return int(1);
        }
        let current = self.current();
        let answer = match class.as_str() {
            "OBJECT" => {
                let mut parts = crate::functions::split_name(securable);
                let object = parts.pop().unwrap_or_default();
                let schema = parts.pop().unwrap_or_else(|| "dbo".into());
                match self.find_object(&current, &schema, &object) {
                    Ok(Some(o)) => self.permitted(&current, &permission, Some(&o)).unwrap_or(false),
                    _ => return null(),
                }
            }
            "" | "SERVER" => self.has_server_permission(&[&permission]),
            _ => self.permitted(&current, &permission, None).unwrap_or(false),
        };
        int(i64::from(answer))
    }

    /// Views of the server's state: their rows are literals of this moment.
    pub(super) fn server_view(&self, database: &str, schema: &str, name: &str) -> Result<Option<Derived>, SqlError> {
        if same(schema, "dbo") {
            return if same(database, "msdb") { self.msdb_view(name) } else { Ok(None) };
        }
        if !same(schema, "sys") {
            return Ok(None);
        }
        let name = name.to_ascii_lowercase();
        if let Some(found) = self.operations_view(database, &name)? {
            return Ok(Some(found));
        }
        let (spec, rows): (&str, Vec<String>) = match name.as_str() {
            "databases" => (DATABASES, self.database_rows()?),
            "sysdatabases" => (
                "name sysname, dbid smallint?, sid varbinary(85)?, mode smallint?, status int?, crdate datetime, version smallint?",
                self.shared
                    .databases()
                    .iter()
                    .map(|d| format!("{}, {}, NULL, 0, 65536, {}, 957", catalog::text(&d.name), d.id, datetime(d.created)))
                    .collect(),
            ),
            "configurations" => (
                "configuration_id int, name nvarchar(35), value sql_variant?, minimum sql_variant?, maximum sql_variant?, value_in_use sql_variant?, description nvarchar(255), is_dynamic bit, is_advanced bit",
                configurations(),
            ),
            "dm_server_services" => {
                self.require_server_state()?;
                let (agent, state) = if self.shared.agent_running() { (4, "Running") } else { (1, "Stopped") };
                (
                    "servicename nvarchar(256), startup_type int?, startup_type_desc nvarchar(256)?, status int?, status_desc nvarchar(256)?, process_id int?, last_startup_time datetimeoffset(7)?, service_account nvarchar(256), filename nvarchar(256), is_clustered nvarchar(1), instant_file_initialization_enabled nvarchar(1)",
                    vec![
                        "'SQL Server (MSSQLSERVER)', 2, 'Automatic', 4, 'Running', 1, NULL, 'mssql', 'sqlservr', 'N', 'Y'".into(),
                        format!(
                            "'SQL Server Agent (MSSQLSERVER)', 2, 'Automatic', {agent}, '{state}', 1, NULL, 'mssql', 'sqlservr', 'N', 'Y'"
                        ),
                    ],
                )
            }
            "dm_os_host_info" => (
                "host_platform nvarchar(256), host_distribution nvarchar(256), host_release nvarchar(256), host_sku int?, os_language_version int",
                vec!["'Linux', 'Tributary', '1', NULL, 0".into()],
            ),
            "dm_exec_sessions" => (
                "session_id smallint, login_time datetime, host_name nvarchar(128)?, program_name nvarchar(128)?, login_name nvarchar(128), status nvarchar(30), is_user_process bit, database_id smallint, transaction_isolation_level smallint, open_transaction_count int",
                self.session_rows(),
            ),
            "sysprocesses" => (
                "spid smallint, login_time datetime, hostname nchar(128)?, program_name nchar(128)?, loginame nchar(128), status nchar(30), is_user bit, dbid smallint, isolation smallint, open_tran smallint",
                self.session_rows(),
            ),
            "dm_exec_connections" => (
                "session_id int?, net_transport nvarchar(40), protocol_type nvarchar(40)?, encrypt_option nvarchar(40), auth_scheme nvarchar(40), client_net_address varchar(48)?",
                self.shared
                    .connected()
                    .iter()
                    .map(|s| format!("{}, 'TCP', 'TSQL', 'FALSE', 'SQL', '127.0.0.1'", s.spid))
                    .collect(),
            ),
            "dm_exec_requests" => (
                "session_id smallint, request_id int, start_time datetime, status nvarchar(30), command nvarchar(32), database_id smallint",
                vec![format!(
                    "{}, 0, {}, 'running', 'SELECT', {}",
                    self.spid,
                    datetime(self.shared.clock.local_ticks()),
                    self.shared.database(database).map_or(0, |d| d.id)
                )],
            ),
            "dm_tran_database_transactions" => {
                self.require_server_state()?;
                (
                    "transaction_id bigint, database_id int, database_transaction_begin_time datetime?, database_transaction_type int, database_transaction_state int, database_transaction_log_record_count bigint, database_transaction_begin_lsn numeric(25,0)?, database_transaction_last_lsn numeric(25,0)?",
                    self.transaction_rows(database)?,
                )
            }
            "dm_tran_current_transaction" => (
                "transaction_id bigint, transaction_sequence_num bigint, transaction_is_snapshot bit",
                vec![format!(
                    "{}, 0, {}",
                    self.transaction.borrow().id,
                    u8::from(self.settings.borrow().isolation == Isolation::Snapshot)
                )],
            ),
            "dm_tran_session_transactions" => (
                "session_id int, transaction_id bigint, is_user_transaction bit",
                if self.in_transaction() {
                    vec![format!("{}, {}, 1", self.spid, self.transaction.borrow().id)]
                } else {
                    Vec::new()
                },
            ),
            "dm_cdc_log_scan_sessions" => {
                self.require_database_state(database)?;
                return Ok(Some(views::from_cdc(&cdc::jobs::log_scan_sessions())));
            }
            "dm_cdc_errors" => {
                self.require_database_state(database)?;
                return Ok(Some(views::from_cdc(&cdc::jobs::errors())));
            }
            "server_principals" | "sql_logins" => (
                "name sysname, principal_id int, sid varbinary(85)?, type char(1), type_desc nvarchar(60)?, is_disabled bit?, default_database_name sysname?",
                self.shared
                    .logins()
                    .iter()
                    .enumerate()
                    .map(|(i, l)| format!("{}, {}, x'01', 'S', 'SQL_LOGIN', 0, 'master'", catalog::text(&l.name), i + 1))
                    .collect(),
            ),
            "servers" => (
                "server_id int, name sysname, product sysname, provider sysname, is_linked bit",
                vec![format!("0, '{SERVER_NAME}', 'SQL Server', 'SQLNCLI', 0")],
            ),
            "filegroups" => (
                "name sysname, data_space_id int, type char(2), type_desc nvarchar(60)?, is_default bit?",
                vec!["'PRIMARY', 1, 'FG', 'ROWS_FILEGROUP', 1".into()],
            ),
            "database_files" | "master_files" => (
                "file_id int, type tinyint, type_desc nvarchar(60)?, name sysname, physical_name nvarchar(260), size int, state tinyint",
                vec![format!("1, 0, 'ROWS', {0}, {0}, 1024, 0", catalog::text(database))],
            ),
            "syscharsets" => (
                "type smallint, id tinyint, csid tinyint, name sysname, description nvarchar(255)?",
                vec!["1001, 1, 0, 'iso_1', 'Code Page 1252'".into()],
            ),
            "syslanguages" => (
                "langid smallint, dateformat nchar(3), datefirst tinyint, name sysname, alias sysname, lcid int",
                vec!["0, 'mdy', 7, 'us_english', 'English', 1033".into()],
            ),
            "time_zone_info" => ("name sysname, current_utc_offset nvarchar(6), is_currently_dst bit", self.time_zone_rows()),
            _ => return Ok(None),
        };
        Ok(Some(literal_rows(spec, rows)))
    }

    fn database_rows(&self) -> Result<Vec<String>, SqlError> {
        let mut rows = Vec::new();
        for d in self.shared.databases() {
            let (snapshot, rcsi, cdc, waits) = self.with(&d.name, |l| {
                let read = |k: &str| catalog::setting(&l.db, k).map_err(|e| fault::from_sqlite(&e));
                Ok((
                    read("snapshot")?,
                    read("rcsi")?,
                    cdc::is_enabled(&l.db).unwrap_or(false),
                    cdc::holds_log(&l.db).unwrap_or(false),
                ))
            })?;
            let system = d.id <= 4;
            rows.push(format!(
                "{}, {}, NULL, x'01', {}, 160, '{}', 0, 'MULTI_USER', 0, 0, 0, 0, 'ONLINE', 0, 0, 0, {snapshot}, '{}', {rcsi}, 1, 'FULL', 2, 'CHECKSUM', 0, {}, {}, 0, 0, 0, 0, 0, NULL, NULL, 0",
                catalog::text(&d.name), d.id, datetime(d.created), catalog::DEFAULT_COLLATION, if snapshot != 0 { "ON" } else { "OFF" }, if waits { "6, 'REPLICATION'" } else { "0, 'NOTHING'" }, u8::from(cdc && !system)
            ));
        }
        Ok(rows)
    }

    fn session_rows(&self) -> Vec<String> {
        let level = match self.settings.borrow().isolation {
            Isolation::ReadUncommitted => 1,
            Isolation::RepeatableRead => 3,
            Isolation::Serializable => 4,
            Isolation::Snapshot => 5,
            _ => 2,
        };
        let database = self.shared.database(&self.current()).map_or(0, |d| d.id);
        self.shared
            .connected()
            .iter()
            .map(|s| {
                let own = s.spid == self.spid;
                let open = if own { self.transaction.borrow().count } else { 0 };
                format!(
                    "{}, {}, {}, {}, {}, '{}', 1, {database}, {}, {open}",
                    s.spid,
                    datetime(s.since),
                    catalog::text(&s.host),
                    catalog::text(&s.program),
                    catalog::text(&s.login),
                    if own { "running" } else { "sleeping" },
                    if own { level } else { 2 }
                )
            })
            .collect()
    }

    /// The position in the log at which the session's transaction stands: numeric(25,0) made of the LSN's three parts, as SQL Server shows it.
    fn transaction_rows(&self, database: &str) -> Result<Vec<String>, SqlError> {
        if !self.in_transaction() {
            return Ok(Vec::new());
        }
        let (id, began) = (self.transaction.borrow().id, self.transaction.borrow().began);
        let lsn = self.with(database, |l| cdc::current_lsn(&l.db).map_err(|e| crate::capture_procedures::error(&e)))?;
        let colon = lsn.to_colon_form();
        let parts: Vec<i128> = colon.split(':').map(|p| i128::from_str_radix(p, 16).unwrap_or(0)).collect();
        let number = match parts.as_slice() {
            [a, b, c] => a * 1_000_000_000_000_000 + b * 100_000 + c,
            _ => 0,
        };
        let t = DataType::Numeric { precision: 25, scale: 0 };
        let number = literal(&Value::Decimal { mantissa: number, scale: 0 }, &t);
        let database_id = self.shared.database(database).map_or(0, |d| d.id);
        Ok(vec![format!("{id}, {database_id}, {}, 1, 4, 1, {number}, {number}", datetime(began))])
    }

    /// Table-valued functions of the server.
    pub(super) fn server_function(
        &self,
        schema: &str,
        name: &str,
        arguments: &[Option<(Value, DataType)>],
    ) -> Result<Option<Derived>, SqlError> {
        let first = arguments.first().and_then(Option::as_ref);
        let answer = |spec: &str, rows: Vec<String>| Some(literal_rows(spec, rows));
        Ok(match (schema.to_ascii_lowercase().as_str(), name.to_ascii_lowercase().as_str()) {
            ("", "string_split") => {
                let separator = match arguments.get(1) {
                    Some(Some((Value::Text(s), _))) => s.clone(),
                    _ => ",".into(),
                };
                let rows = match first {
                    Some((Value::Text(s), _)) if !separator.is_empty() => {
                        s.split(separator.as_str()).map(catalog::text).collect()
                    }
                    _ => Vec::new(),
                };
                answer("value nvarchar(4000)", rows)
            }
            (_, "fn_my_permissions") => answer(
                "entity_name sysname, subentity_name sysname, permission_name nvarchar(60)",
                if self.sysadmin { vec!["'server', '', 'CONTROL SERVER'".into()] } else { Vec::new() },
            ),
            (_, "fn_listextendedproperty") => {
                answer("objtype sysname?, objname sysname?, name sysname, value sql_variant?", Vec::new())
            }
            (_, "fn_helpcollations") => answer(
                "name sysname, description nvarchar(1000)",
                vec![format!("'{}', 'Latin1-General, case-insensitive, accent-sensitive'", catalog::DEFAULT_COLLATION)],
            ),
            _ => None,
        })
    }
}

/// A relation of these columns and rows, each row a list of literals.
#[expect(clippy::needless_pass_by_value, reason = "rows are made for it")]
pub(super) fn literal_rows(spec: &str, rows: Vec<String>) -> Derived {
    let columns = views::columns(spec);
    let named = |value: &dyn Fn(usize) -> String| {
        let list = columns.iter().enumerate().map(|(i, c)| format!("{} AS {}", value(i), catalog::quote(&c.name)));
        list.collect::<Vec<_>>().join(", ")
    };
    let sql = if rows.is_empty() {
        format!("SELECT {} WHERE 0", named(&|_| "NULL".into()))
    } else {
        format!("SELECT {} FROM (VALUES ({}))", named(&|i| format!("column{}", i + 1)), rows.join("), ("))
    };
    Derived { sql, columns, volatile: true }
}

fn variant_null() -> Option<(Value, DataType)> {
    Some((Value::Null, DataType::SqlVariant))
}

const DATABASES: &str = "name sysname, database_id int, source_database_id int?, owner_sid varbinary(85)?, create_date datetime, compatibility_level tinyint, collation_name sysname?, user_access tinyint?, user_access_desc nvarchar(60)?, is_read_only bit?, is_auto_close_on bit, is_auto_shrink_on bit?, state tinyint?, state_desc nvarchar(60)?, is_in_standby bit?, is_cleanly_shutdown bit?, is_supplemental_logging_enabled bit?, snapshot_isolation_state tinyint?, snapshot_isolation_state_desc nvarchar(60)?, is_read_committed_snapshot_on bit?, recovery_model tinyint?, recovery_model_desc nvarchar(60)?, page_verify_option tinyint?, page_verify_option_desc nvarchar(60)?, is_published bit, log_reuse_wait tinyint?, log_reuse_wait_desc nvarchar(60)?, is_cdc_enabled bit, is_encrypted bit?, is_fulltext_enabled bit?, is_trustworthy_on bit?, is_db_chaining_on bit?, is_broker_enabled bit, replica_id uniqueidentifier?, group_database_id uniqueidentifier?, containment tinyint?";

fn configurations() -> Vec<String> {
    let number = |n: i64| literal(&Value::Variant(Box::new((DataType::Int, Value::Int(n)))), &DataType::SqlVariant);
    [
        (1536, "max text repl size (B)", 65_536),
        (103, "user connections", 0),
        (1539, "max degree of parallelism", 0),
        (1544, "max server memory (MB)", 2_147_483_647),
        (518, "show advanced options", 0),
    ]
    .iter()
    .map(|(id, name, value)| {
        format!("{id}, '{name}', {v}, {}, {}, {v}, '{name}', 1, 0", number(-1), number(2_147_483_647), v = number(*value))
    })
    .collect()
}

fn server_property(name: &str) -> Option<(Value, DataType)> {
    match name.to_ascii_lowercase().as_str() {
        "productversion" => variant_text("16.0.4135.4"),
        "productlevel" => variant_text("RTM"),
        "productmajorversion" => variant_text("16"),
        "productminorversion" => variant_text("0"),
        "productbuild" => variant_text("4135"),
        "productupdatelevel" => variant_text("CU14"),
        "edition" => variant_text("Developer Edition (64-bit)"),
        "engineedition" => variant(Value::Int(3), DataType::Int),
        "editionid" => variant(Value::Int(-2_117_995_310), DataType::BigInt),
        "servername" | "machinename" | "computernamephysicalnetbios" => variant_text(SERVER_NAME),
        "collation" => variant_text(catalog::DEFAULT_COLLATION),
        "isclustered"
        | "isintegratedsecurityonly"
        | "isfulltextinstalled"
        | "isxtpsupported"
        | "islocaldb"
        | "ispolybaseinstalled" => variant(Value::Int(0), DataType::Int),
        "lcid" => variant(Value::Int(1033), DataType::Int),
        "sqlcharset" => variant(Value::Int(1), DataType::TinyInt),
        "sqlcharsetname" => variant_text("iso_1"),
        "sqlsortorder" => variant(Value::Int(52), DataType::TinyInt),
        "sqlsortordername" => variant_text("nocase_iso"),
        "processid" => variant(Value::Int(1), DataType::Int),
        _ => variant_null(),
    }
}
