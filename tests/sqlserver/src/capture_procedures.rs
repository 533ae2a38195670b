//! The procedures of change data capture: their parameters, and the calls into the crate `cdc`.

use cdc::jobs::{JobOptions, JobType};
use rusqlite::Connection;
use tds::SqlError;

use crate::catalog::capture::CaptureCatalog;
use crate::catalog::views::from_cdc;
use crate::clock;
use crate::message;
use crate::session::Arguments;
use crate::session::fault;
use crate::translate::Derived;

pub(crate) enum Done {
    Nothing,
    Rows(Derived),
    Messages(Vec<SqlError>),
}

/// An error of change data capture as the client sees it.
pub(crate) fn error(e: &cdc::Error) -> SqlError {
    // An error of the storage keeps what the storage said.
    if let Some(inner) = std::error::Error::source(e).and_then(|s| s.downcast_ref::<rusqlite::Error>()) {
        return fault::from_sqlite(inner);
    }
    SqlError { state: e.state(), ..message::error(e.number(), e.severity(), e.to_string()) }
}

/// Parameter names in the order of the procedure's declaration; `None`: no such procedure.
pub(crate) fn parameters(procedure: &str) -> Option<&'static [&'static str]> {
    Some(match procedure {
        "sp_cdc_enable_db" | "sp_cdc_disable_db" | "sp_cdc_help_jobs" => &[],
        "sp_cdc_scan" => &["maxtrans", "maxscans", "continuous", "pollinginterval"],
        "sp_cdc_enable_table" => &[
            "source_schema",
            "source_name",
            "capture_instance",
            "supports_net_changes",
            "role_name",
            "index_name",
            "captured_column_list",
            "filegroup_name",
            "allow_partition_switch",
        ],
        "sp_cdc_disable_table" => &["source_schema", "source_name", "capture_instance"],
        "sp_cdc_help_change_data_capture" => &["source_schema", "source_name"],
        "sp_cdc_get_captured_columns" | "sp_cdc_get_ddl_history" => &["capture_instance"],
        "sp_cdc_add_job" => {
            &["job_type", "start_job", "maxtrans", "maxscans", "continuous", "pollinginterval", "retention", "threshold"]
        }
        "sp_cdc_change_job" => &["job_type", "maxtrans", "maxscans", "continuous", "pollinginterval", "retention", "threshold"],
        "sp_cdc_start_job" | "sp_cdc_stop_job" | "sp_cdc_drop_job" => &["job_type"],
        "sp_cdc_cleanup_change_table" => &["capture_instance", "low_water_mark", "threshold"],
        _ => return None,
    })
}

/// Whether the procedure only answers rows.
pub(crate) fn reads(procedure: &str) -> bool {
    procedure.starts_with("sp_cdc_help") || procedure.starts_with("sp_cdc_get")
}

fn flag(a: &Arguments<'_>, name: &str) -> Option<bool> {
    a.text(name).map(|t| t == "1" || t.eq_ignore_ascii_case("true"))
}

fn options(a: &Arguments<'_>) -> JobOptions {
    JobOptions {
        maxtrans: a.integer("maxtrans"),
        maxscans: a.integer("maxscans"),
        continuous: flag(a, "continuous"),
        pollinginterval: a.integer("pollinginterval"),
        retention: a.integer("retention"),
        threshold: a.integer("threshold"),
    }
}

fn job_type(a: &Arguments<'_>, default: Option<&str>) -> Result<JobType, SqlError> {
    let given = a.text("job_type");
    JobType::parse(given.as_deref().or(default).unwrap_or_default()).map_err(|e| error(&e))
}

/// Calls a procedure on the database that is the connection's main one, at the local time `ticks`. Transactions are the caller's.
pub(crate) fn call(db: &Connection, procedure: &str, a: &Arguments<'_>, ticks: i64) -> Result<Done, SqlError> {
    let now = clock::civil(ticks);
    let mut catalog = CaptureCatalog { db, now: ticks };
    let fail = |e: cdc::Error| error(&e);
    let text = |name: &str| a.text(name).unwrap_or_default();
    Ok(match procedure {
        "sp_cdc_enable_db" => {
            cdc::enable_db(db, &mut catalog, now).map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_disable_db" => {
            cdc::disable_db(db, &mut catalog).map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_enable_table" => enable_table(db, &mut catalog, a, now)?,
        "sp_cdc_disable_table" => {
            cdc::disable_table(db, &mut catalog, &text("source_schema"), &text("source_name"), &text("capture_instance"))
                .map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_help_change_data_capture" => {
            let (schema, name) = (a.text("source_schema"), a.text("source_name"));
            Done::Rows(from_cdc(
                &cdc::procedures::help_change_data_capture(db, &catalog, schema.as_deref(), name.as_deref()).map_err(fail)?,
            ))
        }
        "sp_cdc_get_captured_columns" => {
            Done::Rows(from_cdc(&cdc::procedures::get_captured_columns(db, &catalog, &text("capture_instance")).map_err(fail)?))
        }
        "sp_cdc_get_ddl_history" => {
            Done::Rows(from_cdc(&cdc::procedures::get_ddl_history(db, &catalog, &text("capture_instance")).map_err(fail)?))
        }
        "sp_cdc_help_jobs" => Done::Rows(from_cdc(&cdc::procedures::help_jobs(db).map_err(fail)?)),
        "sp_cdc_scan" => {
            cdc::capture::scan(db, &mut catalog, now).map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_add_job" => {
            cdc::jobs::add(db, job_type(a, None)?, &options(a), now).map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_change_job" => {
            cdc::jobs::change(db, job_type(a, Some("capture"))?, &options(a)).map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_start_job" => {
            cdc::jobs::start(db, job_type(a, Some("capture"))?, now).map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_stop_job" => {
            cdc::jobs::stop(db, job_type(a, Some("capture"))?).map_err(fail)?;
            Done::Nothing
        }
        "sp_cdc_drop_job" => {
            cdc::jobs::drop_job(db, job_type(a, None)?).map_err(fail)?;
            Done::Nothing
        }
        _ => {
            let mark = match a.get("low_water_mark").map(|m| &m.value) {
                Some(tds::Value::Bytes(b)) => {
                    let mut all = [0; 10];
                    let n = b.len().min(10);
                    all[..n].copy_from_slice(&b[..n]);
                    Some(cdc::Lsn::from(all.as_slice()))
                }
                _ => None,
            };
            cdc::cleanup::cleanup_change_table(db, &text("capture_instance"), mark, a.integer("threshold")).map_err(fail)?;
            Done::Nothing
        }
    })
}

fn enable_table(
    db: &Connection,
    catalog: &mut CaptureCatalog<'_>,
    a: &Arguments<'_>,
    now: cdc::DateTime,
) -> Result<Done, SqlError> {
    for required in ["source_schema", "source_name"] {
        if a.get(required).is_none() {
            return Err(message::error(
                201,
                16,
                format!("Procedure or function 'sp_cdc_enable_table' expects parameter '@{required}', which was not supplied."),
            ));
        }
    }
    if a.get("role_name").is_none() {
        return Err(message::error(
            201,
            16,
            "Procedure or function 'sp_cdc_enable_table' expects parameter '@role_name', which was not supplied.".into(),
        ));
    }
    let options = cdc::EnableTable {
        source_schema: a.text("source_schema").unwrap_or_default(),
        source_name: a.text("source_name").unwrap_or_default(),
        role_name: a.text("role_name"),
        capture_instance: a.text("capture_instance"),
        supports_net_changes: flag(a, "supports_net_changes"),
        index_name: a.text("index_name"),
        captured_column_list: a.text("captured_column_list"),
        filegroup_name: a.text("filegroup_name"),
        allow_partition_switch: flag(a, "allow_partition_switch"),
    };
    let enabled = cdc::enable_table(db, catalog, &options, now).map_err(|e| error(&e))?;
    if !enabled.jobs_created {
        return Ok(Done::Nothing);
    }
    let database: String =
        db.query_row("SELECT database FROM __cdc_state", [], |r| r.get(0)).map_err(|e| fault::from_sqlite(&e))?;
    let say = |job: &str| message::error(22_803, 0, format!("Job 'cdc.{database}_{job}' started successfully."));
    Ok(Done::Messages(vec![say("capture"), say("cleanup")]))
}
