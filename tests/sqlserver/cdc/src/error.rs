//! What can go wrong, with SQL Server's numbers and texts: clients match on them.

use rusqlite::ErrorCode;

use crate::Lsn;

pub type Result<T> = std::result::Result<T, Error>;

/// A refusal as SQL Server words it, or a fault of the storage.
///
/// [`Error::number`], [`Error::severity`] and [`Error::state`] make the error token; the text is this type's `Display`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "The database '{database}' is not enabled for Change Data Capture. Ensure that the correct database context is set and retry the operation. To report on the databases enabled for Change Data Capture, query the is_cdc_enabled column in the sys.databases catalog view."
    )]
    DatabaseNotEnabled { database: String },
    #[error(
        "Database '{database}' is already enabled for Change Data Capture. Ensure that the correct database context is set, and retry the operation. To report on the databases enabled for Change Data Capture, query the is_cdc_enabled column in the sys.databases catalog view."
    )]
    DatabaseAlreadyEnabled { database: String },
    #[error(
        "Parameter @role_name cannot be empty. Specify a value for @role_name and retry the operation. Supply null as the value if no role is to be used to gate access to captured change data."
    )]
    EmptyRole,
    #[error("The named capture instance {instance} does not exist for database {database}.")]
    NoSuchInstance { instance: String, database: String },
    #[error(
        "The number of columns captured by capture instance '{instance}' exceeds the maximum allowed number: {limit}. Use the @captured_columns_list parameter to specify a subset of the columns less than or equal to the maximum allowed and resubmit the request."
    )]
    TooManyColumns { instance: String, limit: usize },
    #[error(
        "Could not create a capture instance because the capture instance name '{instance}' already exists in the current database. Specify an explicit unique name for the parameter @capture_instance."
    )]
    InstanceExists { instance: String },
    #[error(
        "Capture instance name '{instance}' exceeds the length limit of 100 characters. Specify a name that satisfies the length constraint."
    )]
    InstanceNameTooLong { instance: String },
    #[error("Index name '{index}' is not an index for table '{schema}.{table}'. Specify a valid index name for the table.")]
    NoSuchIndex { index: String, schema: String, table: String },
    #[error("Could not locate '{column}' as a column of source table '{schema}.{table}'. Specify a valid column name.")]
    NoSuchColumn { column: String, schema: String, table: String },
    #[error(
        "Source table '{schema}.{table}' does not exist in the current database. Ensure that the correct database context is set. Specify a valid schema and table name for the database."
    )]
    NoSuchTable { schema: String, table: String },
    #[error(
        "Capture instance name '{instance}' is invalid. Specify a valid name. See the topic 'Identifiers' in SQL Server Books Online for object name rules."
    )]
    InvalidInstanceName { instance: String },
    #[error(
        "The parameter @supports_net_changes is set to 1, but the source table does not have a primary key defined and no alternate unique index has been specified."
    )]
    NetChangesNeedKey,
    #[error(
        "Columns specified in the captured column list could not be mapped to columns in source table '{schema}.{table}'. Verify that the columns specified in the parameter @captured_column_list are delimited properly and match columns in the source table."
    )]
    UnmappedColumns { schema: String, table: String },
    #[error(
        "Columns used to uniquely identify a row for net change tracking must be included in the list of captured columns. Add either the primary key columns of the source table, or the columns defined for the index specified in the parameter @index_name to the list of captured columns and retry the operation."
    )]
    KeyNotCaptured,
    #[error(
        "LSN {lsn}, specified as the new low end point for the change table associated with capture instance '{instance}', is not within the Change Data Capture timeline [{low}, {high}]."
    )]
    LowEndOutOfTimeline { lsn: Lsn, instance: String, low: Lsn, high: Lsn },
    #[error(
        "Change data capture instance '{instance}' has not been enabled for the source table '{schema}.{table}'. Use sys.sp_cdc_help_change_data_capture to verify the capture instance name and retry the operation."
    )]
    InstanceNotEnabled { instance: String, schema: String, table: String },
    #[error(
        "Two capture instances already exist for source table '{schema}.{table}'. A table can have at most two capture instances. If the current tracking options are not appropriate, disable change tracking for the obsolete instance by using sys.sp_cdc_disable_table and retry the operation."
    )]
    TwoInstances { schema: String, table: String },
    #[error("Parameter '{parameter}' cannot be null or empty. Specify a value for the named parameter and retry the operation.")]
    EmptyParameter { parameter: &'static str },
    #[error(
        "LSN {lsn}, specified as the new low end point for change table cleanup must represent the start_lsn value of a current entry in the cdc.lsn_time_mapping table. Choose an LSN value that satisfies this requirement."
    )]
    LowEndNotMapped { lsn: Lsn },
    #[error(
        "A quoted column in the column list is not properly terminated. Verify that columns are correctly delimited and retry the operation. For more information, see 'Delimited Identifiers' in Books Online."
    )]
    UnterminatedColumn,
    #[error("The value for parameter @maxscans specified for the Change Data Capture job must be greater than 0.")]
    MaxScans,
    #[error(
        "When calling stored procedure [sys].sp_cdc_help_change_data capture, if either @source_schema or @source_name is non-null and non-empty, the other parameter must also be non-null and non-empty."
    )]
    HalfATable,
    #[error(
        "The specified filegroup '{filegroup}' is not a valid filegroup for database '{database}'. Specify a valid existing filegroup or create the named filegroup, and retry the operation."
    )]
    NoSuchFilegroup { filegroup: String, database: String },
    #[error("Tables contained in the cdc schema cannot be enabled for Change Data Capture.")]
    TableOfCdc,
    #[error(
        "Source table '{table}' contains one of the following reserved column names: __$start_lsn, __$end_lsn, __$seqval, __$operation, and __$update_mask. To enable Change Data Capture for this table, specify a captured column list and ensure that these columns are excluded from the list."
    )]
    ReservedColumn { table: String },
    #[error(
        "Change data capture has not been enabled for source table '{schema}.{table}'. Specify the name of a table enabled for Change Data Capture. To report on the tables enabled for Change Data Capture, query the is_tracked_by_cdc column in the sys.tables catalog view."
    )]
    TableNotEnabled { schema: String, table: String },
    #[error(
        "The value specified for the parameter @pollinginterval must be greater than or equal to 0 and less than 24 hours(Max: 86399 seconds). Specify a polling interval (in seconds) that is less than 24 hours (86,400 seconds)."
    )]
    PollingInterval,
    #[error("The value specified for the parameter @maxtrans must be greater than 0.")]
    MaxTrans,
    #[error(
        "The specified @job_type, {job_type}, is not supported. The value specified for the parameter @job_type must be N'capture' to indicate a capture job, or N'cleanup' to indicate a cleanup job."
    )]
    JobType { job_type: String },
    #[error(
        "The retention value specified for the Change Data Capture cleanup process must be greater than 0 and less than or equal to 52594800. When creating or modifying the cleanup job, specify a retention value (in minutes) that is within that range. If this error is encountered when executing the sys.sp_cdc_cleanup_change_table stored procedure, reset the retention value associated with the job to a non-negative value less than 52594800 by using the sp_cdc_change_job stored procedure."
    )]
    Retention,
    #[error(
        "A value for the parameter @retention cannot be specified when the job type is 'capture'. Specify NULL for the parameter, or omit the parameter from the statement."
    )]
    RetentionOfCapture,
    #[error(
        "When adding or modifying the CDC cleanup job, @pollinginterval, @maxtrans, @maxscans, and @continuous may not be assigned non-null values."
    )]
    CaptureOptionsOfCleanup,
    #[error(
        "The Change Data Capture '{job_type}' job does not exist in the system table 'msdb.dbo.cdc_jobs'. Use the stored procedure 'sys.sp_cdc_add_job' to add the Change Data Capture job."
    )]
    NoSuchJob { job_type: String },
    #[error("SQLServerAgent Error: Request to stop job {job} (from User sa) refused because the job is not currently running.")]
    JobNotRunning { job: String },
    #[error("SQLServerAgent Error: Request to run job {job} (from User sa) refused because the job is already running.")]
    JobAlreadyRunning { job: String },
    #[error(
        "An insufficient number of arguments were supplied for the procedure or function cdc.fn_cdc_get_{kind}_changes_ ... ."
    )]
    RangeOutOfBounds { kind: &'static str },
    #[error("An insufficient number of arguments were supplied for the procedure or function {function}.")]
    TooFewArguments { function: String },
    #[error("Procedure or function {function} has too many arguments specified.")]
    TooManyArguments { function: String },
    /// A scripted fault of the capture job.
    #[error("{message}")]
    Scripted { number: i32, message: String },
    /// SQLite could not do it: a full disk, a lock, a damaged file. The stand-in's own fault, never SQL Server's.
    #[error("Change data capture could not read or write its storage: {0}. Check the stand-in's data directory.")]
    Storage(#[from] rusqlite::Error),
}

impl Error {
    /// SQL Server's message number.
    pub fn number(&self) -> i32 {
        match self {
            Error::DatabaseNotEnabled { .. } => 22901,
            Error::DatabaseAlreadyEnabled { .. } => 22905,
            Error::EmptyRole => 22907,
            Error::NoSuchInstance { .. } => 22920,
            Error::TooManyColumns { .. } => 22925,
            Error::InstanceExists { .. } => 22926,
            Error::InstanceNameTooLong { .. } => 22927,
            Error::NoSuchIndex { .. } => 22928,
            Error::NoSuchColumn { .. } => 22930,
            Error::NoSuchTable { .. } => 22931,
            Error::InvalidInstanceName { .. } => 22932,
            Error::NetChangesNeedKey => 22939,
            Error::UnmappedColumns { .. } => 22942,
            Error::KeyNotCaptured => 22943,
            Error::LowEndOutOfTimeline { .. } => 22957,
            Error::InstanceNotEnabled { .. } => 22960,
            Error::TwoInstances { .. } => 22962,
            Error::EmptyParameter { .. } => 22963,
            Error::LowEndNotMapped { .. } => 22964,
            Error::UnterminatedColumn => 22965,
            Error::MaxScans => 22970,
            Error::HalfATable => 22972,
            Error::NoSuchFilegroup { .. } => 22973,
            Error::TableOfCdc => 22974,
            Error::ReservedColumn { .. } => 22975,
            Error::TableNotEnabled { .. } => 22985,
            Error::PollingInterval => 22990,
            Error::MaxTrans => 22991,
            Error::JobType { .. } => 22992,
            Error::Retention => 22994,
            Error::RetentionOfCapture => 22995,
            Error::CaptureOptionsOfCleanup => 22996,
            Error::NoSuchJob { .. } => 22997,
            Error::JobNotRunning { .. } | Error::JobAlreadyRunning { .. } => 22022,
            Error::RangeOutOfBounds { .. } | Error::TooFewArguments { .. } => 313,
            Error::TooManyArguments { .. } => 8144,
            Error::Scripted { number, .. } => *number,
            Error::Storage(error) => match error.sqlite_error_code() {
                // "Lock request time out period exceeded."
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => 1222,
                // "Could not allocate space …"
                Some(ErrorCode::DiskFull) => 1105,
                // "Attempt to fetch logical page …": what a server says when its own storage fails it.
                _ => 605,
            },
        }
    }

    /// SQL Server's severity: 10 informs, 16 is the caller's to correct, 17 a lack of resources, 21 the server's own trouble, which ends the session.
    pub fn severity(&self) -> u8 {
        match (self, self.number()) {
            (Error::DatabaseAlreadyEnabled { .. }, _) => 10,
            (Error::Storage(_), 1105) => 17,
            (Error::Storage(_), 605) => 21,
            _ => 16,
        }
    }

    pub fn state(&self) -> u8 {
        match self {
            Error::RangeOutOfBounds { .. } | Error::TooFewArguments { .. } => 3,
            Error::TooManyArguments { .. } => 2,
            _ => 1,
        }
    }
}
