//! What operators and importers ask of a server's health: the agent's jobs in msdb, availability groups, recovery forks, row counts.

use rusqlite::types::Value as Stored;
use tds::{DataType, SqlError, Value};

use super::{Session, fault};
use crate::catalog::{self, Object, ObjectKind, same};
use crate::translate::{Derived, literal};
use crate::types::date::{self, TICKS_PER_DAY};
use crate::{capture_procedures, clock, message};

use super::constants::{datetime, literal_rows};

/// The tables of msdb that a permission may be granted on, with the ids that it is kept under.
pub(super) const MSDB_TABLES: [(&str, i64); 5] =
    [("cdc_jobs", -1), ("sysjobs", -2), ("sysjobactivity", -3), ("sysjobhistory", -4), ("syssessions", -5)];

const HISTORY: &str = "instance_id int, job_id uniqueidentifier, step_id int, step_name sysname, sql_message_id int, sql_severity int, message nvarchar(4000)?, run_status int, run_date int, run_time int, run_duration int, operator_id_emailed int, retries_attempted int, server sysname";

/// A job of change data capture, and the database that it serves.
struct Job {
    database: i64,
    name: String,
    job: cdc::jobs::Listed,
}

impl Job {
    fn id(&self) -> String {
        guid(&self.job.job_id)
    }
}

/// A `uniqueidentifier` as a literal.
fn guid(text: &str) -> String {
    let value = uuid::Uuid::parse_str(text).map_or(Value::Null, |u| Value::UniqueIdentifier(*u.as_bytes()));
    literal(&value, &DataType::UniqueIdentifier)
}

/// The same `uniqueidentifier` for the same name, as a literal.
fn guid_of_name(name: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, name).hash(&mut hasher);
        hasher.finish()
    };
    guid(&uuid::Uuid::from_u64_pair(half(1), half(2)).to_string())
}

/// An object that lies in no catalog, for the check of a permission.
pub(super) fn msdb_table(name: &str) -> Option<Object> {
    let (name, object_id) = MSDB_TABLES.iter().find(|(n, _)| same(n, name))?;
    Some(Object {
        object_id: *object_id,
        schema: "dbo".into(),
        name: (*name).to_string(),
        kind: ObjectKind::Table,
        columns: Vec::new(),
        primary_key: Vec::new(),
        shipped: true,
        definition: None,
    })
}

impl Session {
    pub(super) fn msdb_view(&self, name: &str) -> Result<Option<Derived>, SqlError> {
        let Some(table) = msdb_table(name) else { return Ok(None) };
        if !self.permitted("msdb", "SELECT", Some(&table))? {
            return Err(message::denied("SELECT", &table.name, "msdb", "dbo"));
        }
        let jobs = self.cdc_jobs()?;
        let now = self.shared.clock.local_ticks();
        let (spec, rows) = match table.name.as_str() {
            "cdc_jobs" => (
                "database_id int, job_type nvarchar(20), job_id uniqueidentifier?, maxtrans int?, maxscans int?, continuous bit?, pollinginterval bigint?, retention bigint?, threshold bigint?",
                jobs.iter()
                    .map(|j| {
                        let p = &j.job.parameters;
                        let continuous = u8::from(j.job.continuous);
                        format!(
                            "{}, '{}', {}, {}, {}, {continuous}, {}, {}, {}",
                            j.database,
                            j.job.job_type.name(),
                            j.id(),
                            j.job.maxtrans,
                            j.job.maxscans,
                            j.job.pollinginterval,
                            p.retention,
                            p.threshold
                        )
                    })
                    .collect(),
            ),
            "sysjobs" => (
                "job_id uniqueidentifier, originating_server_id int, name sysname, enabled tinyint, description nvarchar(512)?, start_step_id int, category_id int, owner_sid varbinary(85), date_created datetime, date_modified datetime, version_number int",
                jobs.iter()
                    .map(|j| {
                        let (what, category) = match j.job.job_type {
                            cdc::jobs::JobType::Capture => ("CDC Log Scan Job", 13),
                            cdc::jobs::JobType::Cleanup => ("CDC Cleanup Job", 16),
                        };
                        let created = datetime(self.shared.started);
                        format!(
                            "{}, 0, {}, 1, '{what}', 1, {category}, x'01', {created}, {created}, 1",
                            j.id(),
                            catalog::text(&j.name)
                        )
                    })
                    .collect(),
            ),
            "sysjobactivity" => (
                "session_id int, job_id uniqueidentifier, run_requested_date datetime?, run_requested_source sysname?, queued_date datetime?, start_execution_date datetime?, last_executed_step_id int?, last_executed_step_date datetime?, stop_execution_date datetime?, job_history_id int?, next_scheduled_run_date datetime?",
                jobs.iter()
                    .map(|j| {
                        let began = datetime(self.shared.started);
                        let runs = j.job.parameters.running && self.shared.agent_running();
                        let ended = if runs { "NULL".to_string() } else { datetime(now) };
                        format!("1, {}, {began}, '4', NULL, {began}, NULL, NULL, {ended}, NULL, NULL", j.id())
                    })
                    .collect(),
            ),
            "sysjobhistory" => (HISTORY, self.job_failures(&jobs)?),
            _ => ("session_id int, agent_start_date datetime", vec![format!("1, {}", datetime(self.shared.started))]),
        };
        Ok(Some(literal_rows(spec, rows)))
    }

    fn cdc_jobs(&self) -> Result<Vec<Job>, SqlError> {
        let mut list = Vec::new();
        for d in self.shared.databases().into_iter().filter(|d| d.id > 4) {
            let found = self.with(&d.name, |l| cdc::jobs::listed(&l.db).map_err(|e| capture_procedures::error(&e)))?;
            list.extend(found.into_iter().map(|job| Job {
                database: d.id,
                name: format!("cdc.{}_{}", d.name, job.job_type.name()),
                job,
            }));
        }
        Ok(list)
    }

    /// What failed scans have left in the capture jobs' history.
    fn job_failures(&self, jobs: &[Job]) -> Result<Vec<String>, SqlError> {
        let mut rows = Vec::new();
        for j in jobs.iter().filter(|j| j.job.job_type == cdc::jobs::JobType::Capture) {
            let Some(d) = self.shared.databases().into_iter().find(|d| d.id == j.database) else { continue };
            let failures = self.with(&d.name, |l| cdc::jobs::failures(&l.db).map_err(|e| capture_procedures::error(&e)))?;
            for f in failures {
                let digits = |from: &str| from.chars().filter(char::is_ascii_digit).collect::<String>();
                let (day, time) = f.at.split_once(' ').unwrap_or((&f.at, "0"));
                let time = digits(time.split('.').next().unwrap_or(time));
                rows.push(format!(
                    "{}, {}, 2, 'Change Data Capture Collection Agent', {}, 16, {}, 0, {}, {}, 0, 0, 0, '{}'",
                    rows.len() + 1,
                    j.id(),
                    f.failure.number,
                    catalog::text(&f.failure.message),
                    digits(day),
                    time.parse::<i64>().unwrap_or(0),
                    crate::server::SERVER_NAME
                ));
            }
        }
        Ok(rows)
    }

    /// Availability groups, recovery forks, row counts.
    pub(super) fn operations_view(&self, database: &str, name: &str) -> Result<Option<Derived>, SqlError> {
        let group = self.shared.availability();
        let group_id = |g: &crate::Availability| guid_of_name(&g.group);
        let replica_id = |g: &crate::Availability| guid_of_name(&g.replica);
        let one = |row: &dyn Fn(&crate::Availability) -> String| group.iter().map(row).collect::<Vec<_>>();
        let role = |g: &crate::Availability| if g.primary { (1, "PRIMARY") } else { (2, "SECONDARY") };
        let (spec, rows) = match name {
            "availability_groups" => (
                "group_id uniqueidentifier, name sysname?, resource_id nvarchar(40)?, failure_condition_level int?, health_check_timeout int?",
                one(&|g| format!("{}, {}, NULL, 3, 30000", group_id(g), catalog::text(&g.group))),
            ),
            "availability_replicas" => (
                "replica_id uniqueidentifier?, group_id uniqueidentifier?, replica_server_name nvarchar(256)?, availability_mode tinyint?, availability_mode_desc nvarchar(60)?, failover_mode_desc nvarchar(60)?",
                one(&|g| {
                    format!(
                        "{}, {}, {}, 1, 'SYNCHRONOUS_COMMIT', 'AUTOMATIC'",
                        replica_id(g),
                        group_id(g),
                        catalog::text(&g.replica)
                    )
                }),
            ),
            "dm_hadr_availability_replica_states" => {
                self.require_server_state()?;
                (
                    "replica_id uniqueidentifier, group_id uniqueidentifier, is_local bit, role tinyint?, role_desc nvarchar(60)?, operational_state_desc nvarchar(60)?, connected_state_desc nvarchar(60)?, synchronization_health_desc nvarchar(60)?",
                    one(&|g| {
                        let (number, word) = role(g);
                        format!("{}, {}, 1, {number}, '{word}', 'ONLINE', 'CONNECTED', 'HEALTHY'", replica_id(g), group_id(g))
                    }),
                )
            }
            "dm_hadr_database_replica_states" => {
                self.require_server_state()?;
                let databases: Vec<i64> = self.shared.databases().iter().map(|d| d.id).filter(|id| *id > 4).collect();
                let rows = group.iter().flat_map(|g| {
                    databases.iter().map(move |id| {
                        let state = match (g.suspended, g.primary) {
                            (true, _) => "NOT SYNCHRONIZING",
                            (false, true) => "SYNCHRONIZED",
                            (false, false) => "SYNCHRONIZING",
                        };
                        let (primary, suspended) = (u8::from(g.primary), u8::from(g.suspended));
                        let why = if g.suspended { "0, 'SUSPEND_FROM_USER'" } else { "NULL, NULL" };
                        format!(
                            "{id}, {}, {}, 1, {primary}, '{state}', 'HEALTHY', 'ONLINE', {suspended}, {why}",
                            group_id(g),
                            replica_id(g)
                        )
                    })
                });
                (
                    "database_id int, group_id uniqueidentifier, replica_id uniqueidentifier, is_local bit, is_primary_replica bit?, synchronization_state_desc nvarchar(60)?, synchronization_health_desc nvarchar(60)?, database_state_desc nvarchar(60)?, is_suspended bit?, suspend_reason tinyint?, suspend_reason_desc nvarchar(60)?",
                    rows.collect(),
                )
            }
            "database_recovery_status" => (
                "database_id int, database_guid uniqueidentifier?, family_guid uniqueidentifier?, last_log_backup_lsn numeric(25,0)?, recovery_fork_guid uniqueidentifier?, first_recovery_fork_guid uniqueidentifier?, fork_point_lsn numeric(25,0)?",
                self.recovery_rows()?,
            ),
            "partitions" | "dm_db_partition_stats" => return self.partitions(database, name).map(Some),
            _ => return Ok(None),
        };
        Ok(Some(literal_rows(spec, rows)))
    }

    /// Seen by owners alone.
    fn recovery_rows(&self) -> Result<Vec<String>, SqlError> {
        let mut rows = Vec::new();
        for d in self.shared.databases() {
            if self.require_owner(&d.name).is_err() {
                continue;
            }
            let read = |key: &str| {
                self.with(&d.name, |l| catalog::setting_text(&l.db, key).map_err(|e| fault::from_sqlite(&e)))
                    .map(Option::unwrap_or_default)
            };
            let (database, family) = (guid(&read("database_guid")?), guid(&read("family_guid")?));
            let (fork, first) = (guid(&read("recovery_fork_guid")?), guid(&read("first_recovery_fork_guid")?));
            rows.push(format!("{}, {database}, {family}, NULL, {fork}, {first}, NULL", d.id));
        }
        Ok(rows)
    }

    /// Every index of every table with the rows that are there now: SQL Server's numbers lag behind, an importer must not rely on either.
    fn partitions(&self, database: &str, name: &str) -> Result<Derived, SqlError> {
        let statistics = name == "dm_db_partition_stats";
        if statistics {
            self.require_database_state(database)?;
        }
        let tables: Vec<(i64, String)> = self.with(database, |l| {
            let read = || -> rusqlite::Result<_> {
                let mut statement =
                    l.db.prepare_cached("SELECT object_id, schema || '.' || name FROM \"~objects\" WHERE type = 'U'")?;
                statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?.collect()
            };
            read().map_err(|e| fault::from_sqlite(&e))
        })?;
        let mut rows = String::from("CASE object_id");
        for (id, storage) in &tables {
            rows.push_str(&format!(" WHEN {id} THEN (SELECT count(*) FROM {{db}}{})", catalog::quote(storage)));
        }
        rows.push_str(" ELSE 0 END");
        let id = "(object_id << 8) + index_id AS partition_id, object_id, index_id, 1 AS partition_number";
        let (spec, list) = if statistics {
            (
                "partition_id bigint, object_id int, index_id int, partition_number int, in_row_data_page_count bigint, used_page_count bigint, reserved_page_count bigint, row_count bigint",
                format!("{id}, 1 AS in_row_data_page_count, 2 AS used_page_count, 9 AS reserved_page_count, {rows} AS row_count"),
            )
        } else {
            (
                "partition_id bigint, object_id int, index_id int, partition_number int, hobt_id bigint, rows bigint?, filestream_filegroup_id smallint, data_compression tinyint, data_compression_desc nvarchar(60)?",
                format!(
                    "{id}, (object_id << 8) + index_id AS hobt_id, {rows} AS rows, 0 AS filestream_filegroup_id, 0 AS data_compression, 'NONE' AS data_compression_desc"
                ),
            )
        };
        let sql = format!("SELECT {list} FROM {{db}}\"~indexes\"");
        Ok(Derived { sql, columns: catalog::views::columns(spec), volatile: true })
    }

    pub(super) fn time_zone_rows(&self) -> Vec<String> {
        let now = self.shared.clock.utc_ticks();
        let row = |(name, zone): &(&str, jiff::tz::TimeZone)| {
            let offset = date::text_offset(clock::offset_minutes_at(zone, now));
            format!("{}, '{offset}', {}", catalog::text(name), u8::from(clock::is_summer(zone, now)))
        };
        clock::zones().iter().map(row).collect()
    }

    /// What a login without rights on all of a database may see of its catalog: the objects that it was granted something on.
    pub(super) fn visible(&self, database: &str, view: Derived) -> Result<Derived, SqlError> {
        let has = |name: &str| view.columns.iter().any(|c| c.name == name);
        let column = if has("parent_object_id") && !has("is_ms_shipped") || has("key_index_id") || has("unique_index_id") {
            "parent_object_id"
        } else if has("object_id") {
            "object_id"
        } else {
            return Ok(view);
        };
        let Some(grantees) = self.with_partial_sight(database)? else { return Ok(view) };
        let list: Vec<String> = grantees.iter().map(i64::to_string).collect();
        let granted = format!("state = 'G' AND grantee IN ({})", list.join(", "));
        let sql = format!(
            "SELECT * FROM ({}) WHERE {column} IN (SELECT o.object_id FROM {{db}}\"~objects\" o JOIN {{db}}\"~schemas\" s ON s.name = o.schema \
             WHERE o.object_id IN (SELECT major_id FROM {{db}}\"~permissions\" WHERE class = 'OBJECT' AND {granted}) \
             OR s.schema_id IN (SELECT major_id FROM {{db}}\"~permissions\" WHERE class = 'SCHEMA' AND {granted}))",
            view.sql
        );
        Ok(Derived { sql, ..view })
    }

    /// The grants that count for a user who does not see all of a database; `None`: the user does.
    fn with_partial_sight(&self, database: &str) -> Result<Option<Vec<i64>>, SqlError> {
        if self.sysadmin || self.has_server_permission(&["VIEW ANY DEFINITION", "CONTROL SERVER"]) {
            return Ok(None);
        }
        let Some((user, _)) = self.user(database)? else { return Ok(Some(vec![0])) };
        for permission in ["SELECT", "VIEW DEFINITION", "ALTER"] {
            if self.permitted(database, permission, None)? {
                return Ok(None);
            }
        }
        let roles = self.with(database, |l| catalog::security::roles_of(&l.db, user).map_err(|e| fault::from_sqlite(&e)))?;
        Ok(Some(roles.into_iter().map(|(id, _)| id).chain([user]).collect()))
    }

    /// SQL Server answers the changes of an instance only to who may read its source and is in its role.
    pub(super) fn authorize_changes(&self, database: &str, function: &str) -> Result<(), SqlError> {
        if self.sysadmin || self.require_owner(database).is_ok() {
            return Ok(());
        }
        let lower = function.to_ascii_lowercase();
        let Some(instance) =
            lower.strip_prefix("fn_cdc_get_all_changes_").or_else(|| lower.strip_prefix("fn_cdc_get_net_changes_"))
        else {
            return Ok(());
        };
        let found: Option<(String, String, Option<String>)> = self.with(database, |l| {
            use rusqlite::OptionalExtension;
            l.db.query_row(
                "SELECT o.schema, o.name, i.role_name FROM \"cdc.change_tables\" i JOIN \"~objects\" o ON o.object_id = i.source_object_id WHERE i.capture_instance = ?1 COLLATE NOCASE",
                [instance],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
            )
            .optional()
            .map_err(|e| fault::from_sqlite(&e))
        })?;
        let Some((schema, name, role)) = found else { return Ok(()) };
        let readable = match self.find_object(database, &schema, &name)? {
            Some(source) => self.permitted(database, "SELECT", Some(&source))?,
            None => false,
        };
        if readable && role.is_none_or(|r| self.has_role(&r)) {
            return Ok(());
        }
        Err(message::denied("SELECT", function, database, "cdc"))
    }
}

/// What a restored database gets: a new fork and a new date.
pub(crate) fn begin_fork(db: &rusqlite::Connection, now: i64) -> rusqlite::Result<()> {
    catalog::set_setting_text(db, "recovery_fork_guid", &uuid::Uuid::new_v4().to_string())?;
    catalog::set_setting(db, "created", now - now % (TICKS_PER_DAY as i64 / 86_400))?;
    catalog::touch(db)
}

/// The rows of a table as they are stored.
pub(crate) fn stored_rows(db: &rusqlite::Connection, table: &str) -> rusqlite::Result<Vec<Vec<Stored>>> {
    let mut statement = db.prepare(&format!("SELECT * FROM {}", catalog::quote(table)))?;
    let columns = statement.column_count();
    statement.query_map([], |r| (0..columns).map(|i| r.get(i)).collect())?.collect()
}
