//! The protocol as tiberius speaks it: encryption, every type in both directions, large messages, transactions, errors, cancellation, faults.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::TryStreamExt;
use tds::{Encryption, Fault, Faults, Limits, Options, Value};
use tiberius::{ColumnData, EncryptionLevel, IntoSql, Query};

#[allow(dead_code)]
mod fake;
#[allow(dead_code)]
mod support;

use support::{Tiberius, code, start, start_plain};

/// Database, open transaction and number of resets of the session.
async fn state(client: &mut Tiberius) -> (String, i64) {
    let row = client.simple_query("state").await.unwrap().into_row().await.unwrap().unwrap();
    (row.get::<&str, _>(0).unwrap().to_owned(), row.get(1).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_encryption_that_client_and_server_agree_on_works() {
    use EncryptionLevel as Level;
    let cases = [
        (Encryption::Off, vec![Level::NotSupported]),
        (Encryption::On, vec![Level::NotSupported, Level::Off, Level::On, Level::Required, Level::Strict]),
        (Encryption::Required, vec![Level::Off, Level::On, Level::Required, Level::Strict]),
        (Encryption::Strict, vec![Level::Strict]),
    ];
    for (offered, levels) in cases {
        let server = start(Options { encryption: offered, ..Options::default() }).await;
        for level in levels {
            let mut client =
                server.connect_as(server.config(level)).await.unwrap_or_else(|error| panic!("{offered:?} {level:?}: {error}"));
            assert_eq!(state(&mut client).await, ("master".to_owned(), 0), "{offered:?} {level:?}");
            let rows = client.simple_query("rows 3000").await.unwrap().into_first_result().await.unwrap();
            assert_eq!(rows.len(), 3000, "{offered:?} {level:?}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_agree_on_encryption_are_refused() {
    use EncryptionLevel as Level;
    let cases = [
        (Encryption::Off, Level::Strict),
        (Encryption::Off, Level::Required),
        (Encryption::Required, Level::NotSupported),
        (Encryption::Strict, Level::NotSupported),
        (Encryption::Strict, Level::On),
    ];
    for (offered, level) in cases {
        let server = start(Options { encryption: offered, ..Options::default() }).await;
        assert!(server.connect_as(server.config(level)).await.is_err(), "{offered:?} {level:?}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_refused_with_the_numbers_of_sql_server() {
    let server = start_plain().await;
    let mut config = server.config(EncryptionLevel::NotSupported);
    config.authentication(tiberius::AuthMethod::sql_server("sa", "wrong"));
    assert_eq!(code(&server.connect_as(config).await.unwrap_err()), Some(18456));
    let mut config = server.config(EncryptionLevel::NotSupported);
    config.database("nowhere");
    assert_eq!(code(&server.connect_as(config).await.unwrap_err()), Some(4060));
    let mut config = server.config(EncryptionLevel::NotSupported);
    config.database("shop");
    let mut client = server.connect_as(config).await.unwrap();
    assert_eq!(state(&mut client).await.0, "shop");
    client.simple_query("use [other]").await.unwrap().into_results().await.unwrap();
    assert_eq!(state(&mut client).await.0, "other");
    server.stop().await;
}

/// A value as tiberius gives it, in our own form.
fn ours(data: &ColumnData<'_>) -> Value {
    let moment = |moment: &tiberius::time::DateTime2| {
        let time = moment.time();
        (moment.date().days(), time.increments() * 10u64.pow(7 - u32::from(time.scale())))
    };
    let value = match data {
        ColumnData::U8(x) => x.map(|x| Value::Int(x.into())),
        ColumnData::I16(x) => x.map(|x| Value::Int(x.into())),
        ColumnData::I32(x) => x.map(|x| Value::Int(x.into())),
        ColumnData::I64(x) => x.map(Value::Int),
        ColumnData::F32(x) => x.map(|x| Value::Float(x.into())),
        ColumnData::F64(x) => x.map(Value::Float),
        ColumnData::Bit(x) => x.map(Value::Bit),
        ColumnData::String(x) => x.as_ref().map(|x| Value::Text(x.to_string())),
        ColumnData::Guid(x) => x.map(|x| Value::UniqueIdentifier(x.into_bytes())),
        ColumnData::Binary(x) => x.as_ref().map(|x| Value::Bytes(x.to_vec())),
        ColumnData::Numeric(x) => x.map(|x| Value::Decimal { mantissa: x.value(), scale: x.scale() }),
        ColumnData::Xml(x) => x.as_ref().map(|x| Value::Text(x.to_string())),
        ColumnData::DateTime(x) => x.map(|x| Value::DateTime {
            days: (x.days() + 693_595) as u32,
            ticks: (u64::from(x.seconds_fragments()) * 100_000 + 1) / 3,
        }),
        ColumnData::SmallDateTime(x) => x.map(|x| Value::DateTime {
            days: u32::from(x.days()) + 693_595,
            ticks: u64::from(x.seconds_fragments()) * 600_000_000,
        }),
        ColumnData::Time(x) => x.map(|x| Value::Time(x.increments() * 10u64.pow(7 - u32::from(x.scale())))),
        ColumnData::Date(x) => x.map(|x| Value::Date(x.days())),
        ColumnData::DateTime2(x) => x.map(|x| {
            let (days, ticks) = moment(&x);
            Value::DateTime { days, ticks }
        }),
        ColumnData::DateTimeOffset(x) => x.map(|x| {
            let (days, ticks) = moment(&x.datetime2());
            let local = u64::from(days) * 864_000_000_000 + ticks;
            let local = local.checked_add_signed(i64::from(x.offset()) * 600_000_000).unwrap();
            Value::DateTimeOffset {
                days: (local / 864_000_000_000) as u32,
                ticks: local % 864_000_000_000,
                offset_minutes: x.offset(),
            }
        }),
    };
    value.unwrap_or(Value::Null)
}

/// What a client sees of a value: fixed-length strings are padded, money is a decimal of scale 4, a variant is its inner value.
fn seen(data_type: &tds::DataType, value: &Value) -> Value {
    match (data_type, value) {
        (tds::DataType::Char(n) | tds::DataType::NChar(n), Value::Text(text)) => {
            Value::Text(format!("{text}{}", " ".repeat(usize::from(*n) - text.chars().count())))
        }
        (tds::DataType::Binary(n), Value::Bytes(bytes)) => {
            let mut bytes = bytes.clone();
            bytes.resize(usize::from(*n), 0);
            Value::Bytes(bytes)
        }
        (_, Value::Variant(inner)) => inner.1.clone(),
        _ => value.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_out_as_it_went_in() {
    let server = start_plain().await;
    let mut client = server.connect().await;
    let rows = client.simple_query("types").await.unwrap().into_first_result().await.unwrap();
    for (sql, row) in
        [("types", &rows[0]), ("fixed", &client.simple_query("fixed").await.unwrap().into_row().await.unwrap().unwrap())]
    {
        for ((name, data_type, value), (_, cell)) in fake::all_types().iter().zip(row.cells()) {
            let (seen, ours) = (seen(data_type, value), ours(cell));
            // tiberius reads money as a floating-point number.
            if let (tds::DataType::Money | tds::DataType::SmallMoney, Value::Float(x), Value::Decimal { mantissa, .. }) =
                (data_type, &ours, &seen)
            {
                assert!((x * 10_000.0 - *mantissa as f64).abs() <= mantissa.unsigned_abs() as f64 * 1e-15, "{sql} {name}");
                continue;
            }
            assert!(seen == ours, "{sql} {name}: {seen:.100?} came as {ours:.100?}");
        }
    }
    assert!(rows[1].cells().all(|(_, cell)| ours(cell) == Value::Null));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_of_every_kind_come_back() {
    use tiberius::numeric::Numeric;
    use tiberius::time::{Date, DateTime, DateTime2, DateTimeOffset, Time};
    let server = start_plain().await;
    let mut client = server.connect().await;
    let moment = DateTime2::new(Date::new(738_565), Time::new(476_551_234_567, 7));
    let parameters: Vec<ColumnData<'_>> = vec![
        ColumnData::U8(Some(255)),
        ColumnData::I16(Some(-1)),
        ColumnData::I32(Some(i32::MIN)),
        ColumnData::I64(Some(i64::MAX)),
        ColumnData::F32(Some(1.5)),
        ColumnData::F64(Some(-1e300)),
        ColumnData::Bit(Some(true)),
        ColumnData::String(Some("grüße 😀".into())),
        ColumnData::String(Some("x".repeat(3_000_000).into())),
        ColumnData::Guid(Some(tiberius::Uuid::from_u128(0x0123_4567_89AB_CDEF_1032_5476_98BA_DCFE))),
        ColumnData::Binary(Some(vec![0, 1, 255].into())),
        ColumnData::Binary(Some(vec![7; 100_000].into())),
        ColumnData::Numeric(Some(Numeric::new_with_scale(-12_345, 3))),
        ColumnData::DateTime(Some(DateTime::new(44_970, 4_000_001))),
        ColumnData::Date(Some(Date::new(3_652_058))),
        ColumnData::Time(Some(Time::new(863_999_999_999, 7))),
        ColumnData::DateTime2(Some(moment)),
        ColumnData::DateTimeOffset(Some(DateTimeOffset::new(moment, -330))),
        ColumnData::Xml(Some(std::borrow::Cow::Owned(tiberius::xml::XmlData::new("<a>é</a>")))),
        ColumnData::I32(None),
        ColumnData::String(None),
        ColumnData::Binary(None),
    ];
    let mut query = Query::new("echo");
    for parameter in &parameters {
        query.bind(Given(parameter.clone()));
    }
    let row = query.query(&mut client).await.unwrap().into_row().await.unwrap().unwrap();
    for (at, (given, (_, cell))) in parameters.iter().zip(row.cells()).enumerate() {
        assert!(ours(given) == ours(cell), "parameter {at}: {:.100?} came back as {:.100?}", ours(given), ours(cell));
    }
    server.stop().await;
}

struct Given<'a>(ColumnData<'a>);

impl<'a> IntoSql<'a> for Given<'a> {
    fn into_sql(self) -> ColumnData<'a> {
        self.0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_results_and_values_cross_many_packets() {
    for packet_bytes in [512, 4096, 32767] {
        let limits = Limits { packet_bytes, ..Limits::default() };
        let server = start(Options { encryption: Encryption::Off, limits, ..Options::default() }).await;
        let mut client = server.connect().await;
        let mut rows = client.simple_query("rows 50000").await.unwrap().into_row_stream();
        let mut expected = 0;
        while let Some(row) = rows.try_next().await.unwrap() {
            assert_eq!(row.get::<i32, _>("id"), Some(expected));
            assert_eq!(row.get::<i64, _>("amount"), (expected % 7 != 0).then_some(i64::from(expected)));
            expected += 1;
        }
        assert_eq!(expected, 50_000);
        drop(rows);
        let row = client.simple_query("long 4000000").await.unwrap().into_row().await.unwrap().unwrap();
        let text: &str = row.get(0).unwrap();
        assert_eq!(text.chars().count(), 4_000_000);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_above_the_limit_ends_the_connection() {
    let limits = Limits { message_bytes: 1 << 20, ..Limits::default() };
    let server = start(Options { encryption: Encryption::Off, limits, ..Options::default() }).await;
    let mut client = server.connect().await;
    let long = format!("state -- {}", "x".repeat(1 << 20));
    assert!(outcome(&mut client, &long).await.is_err());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_begin_and_end_by_request() {
    let server = start_plain().await;
    let mut client = server.connect().await;
    client.begin_transaction().await.unwrap();
    assert_ne!(state(&mut client).await.1, 0);
    client.save_transaction("here").await.unwrap();
    client.commit_transaction().await.unwrap();
    assert_eq!(state(&mut client).await.1, 0);
    client.begin_transaction().await.unwrap();
    client.rollback_transaction().await.unwrap();
    assert_eq!(state(&mut client).await.1, 0);
    assert_eq!(code(&client.commit_transaction().await.unwrap_err()), Some(3902));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_leave_the_connection_usable() {
    let server = start_plain().await;
    let mut client = server.connect().await;
    let error = outcome(&mut client, "fail").await.unwrap_err();
    assert_eq!(code(&error), Some(547));
    let error = client.execute("fail", &[]).await.unwrap_err();
    assert_eq!(code(&error), Some(547));
    let error = outcome(&mut client, "misfit").await.unwrap_err();
    assert_eq!(code(&error), Some(8114), "{error}");
    assert!(error.to_string().contains("row 2, column 1"), "{error}");
    let results = client.simple_query("two").await.unwrap().into_results().await.unwrap();
    assert_eq!(results.iter().map(|rows| rows[0].get::<i32, _>(0).unwrap()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(client.execute("insert 7", &[]).await.unwrap().total(), 7);
    client.simple_query("").await.unwrap().into_results().await.unwrap();
    client.simple_query("print").await.unwrap().into_results().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_error_and_a_panic_end_their_own_connection_alone() {
    let server = start_plain().await;
    let mut bystander = server.connect().await;
    for sql in ["fatal", "panic"] {
        let mut client = server.connect().await;
        assert!(outcome(&mut client, sql).await.is_err(), "{sql}");
        assert!(client.simple_query("state").await.is_err(), "{sql}");
        state(&mut bystander).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_server_ends_running_statements() {
    let server = start_plain().await;
    let mut client = server.connect().await;
    let mut rows = client.simple_query("endless").await.unwrap().into_row_stream();
    rows.try_next().await.unwrap().unwrap();
    server.stop().await;
    let outcome = loop {
        match rows.try_next().await {
            Ok(Some(_)) => {}
            other => break other.map(|_| ()),
        }
    };
    assert!(outcome.is_err());
}

async fn with_faults() -> (support::Running, Faults) {
    let faults = Faults::new();
    let options = Options { encryption: Encryption::Off, faults: faults.clone(), ..Options::default() };
    (start(options).await, faults)
}

/// Runs a query to its end.
async fn outcome(client: &mut Tiberius, sql: &str) -> tiberius::Result<usize> {
    let results = client.simple_query(sql).await?.into_results().await?;
    Ok(results.iter().map(Vec::len).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_cut_where_a_fault_says() {
    let (server, faults) = with_faults().await;
    let cuts = [
        Fault::CutAtPacket { nth: 3 },
        Fault::CutAfterBytes { bytes: 10_000 },
        Fault::CutAtRequest { matching: "ROWS".to_owned(), nth: 1 },
        Fault::LoseAnswer { matching: "rows".to_owned(), nth: 1 },
        Fault::CutInResult { matching: "rows".to_owned(), nth: 1, rows: 700 },
        Fault::CutInResult { matching: "rows".to_owned(), nth: 1, rows: 1_000_000 },
    ];
    for (at, fault) in cuts.into_iter().enumerate() {
        let mut client = server.connect().await;
        faults.inject(fault.clone());
        let outcome = outcome(&mut client, "rows 2000").await;
        assert!(outcome.is_err() && code(&outcome.unwrap_err()).is_none(), "{fault:?}");
        assert_eq!((faults.armed(), faults.struck()), (0, at + 1), "{fault:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_a_result_lets_the_rows_before_it_through() {
    let (server, faults) = with_faults().await;
    let mut client = server.connect().await;
    faults.inject(Fault::CutInResult { matching: "rows".to_owned(), nth: 1, rows: 700 });
    let mut rows = client.simple_query("rows 2000").await.unwrap().into_row_stream();
    let mut seen = 0;
    while let Ok(Some(_)) = rows.try_next().await {
        seen += 1;
    }
    assert_eq!(seen, 700);
    drop(rows);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_statement_fails_and_answers_wait() {
    let (server, faults) = with_faults().await;
    let mut client = server.connect().await;
    faults.inject(Fault::FailRequest { matching: "insert".to_owned(), nth: 2, error: fake::error(1205, 13, "Deadlocked.") });
    outcome(&mut client, "insert 1").await.unwrap();
    assert_eq!(code(&outcome(&mut client, "insert 1").await.unwrap_err()), Some(1205));
    outcome(&mut client, "insert 1").await.unwrap();
    let by = Duration::from_millis(60);
    faults.inject(Fault::DelayAnswers { by });
    let before = std::time::Instant::now();
    outcome(&mut client, "insert 1").await.unwrap();
    assert!(before.elapsed() >= by);
    faults.clear();
    faults.inject(Fault::RefuseConnections { count: 1 });
    assert!(server.connect_as(server.config(EncryptionLevel::NotSupported)).await.is_err());
    server.connect().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_certificate_is_used_and_a_broken_one_refused() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let file = std::env::temp_dir().join(format!("tds-certificate-{}.pem", std::process::id()));
    std::fs::write(&file, &chain).unwrap();
    for level in [EncryptionLevel::Required, EncryptionLevel::Strict] {
        let certificate = tds::Certificate::Pem { chain: chain.clone(), key: key.clone() };
        let server = start(Options { certificate, ..Options::default() }).await;
        let mut config = server.untrusting(level);
        config.trust_cert_ca(file.to_str().unwrap());
        let mut client = server.connect_as(config).await.unwrap();
        assert_eq!(state(&mut client).await.0, "master");
        assert!(server.connect_as(server.untrusting(level)).await.is_err(), "a client that trusts nobody gives up");
        server.stop().await;
    }
    std::fs::remove_file(&file).unwrap();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let certificate = tds::Certificate::Pem { chain: "nonsense".to_owned(), key };
    let options = Options { certificate, ..Options::default() };
    let server: std::sync::Arc<dyn tds::Server> = std::sync::Arc::new(fake::Fake::default());
    let error = tds::serve(listener, server, options, std::future::pending()).await.unwrap_err();
    assert!(matches!(error, tds::Error::Certificate(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_logins_have_limits() {
    let limits = Limits { connections: 1, login_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = start(Options { encryption: Encryption::Off, limits, ..Options::default() }).await;
    // A client that says nothing is hung up on, and its place is free again.
    let mut silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    assert_eq!(tokio::io::AsyncReadExt::read(&mut silent, &mut [0]).await.unwrap(), 0);
    let client = loop {
        if let Ok(client) = server.connect_as(server.config(EncryptionLevel::NotSupported)).await {
            break client;
        }
    };
    assert!(server.connect_as(server.config(EncryptionLevel::NotSupported)).await.is_err());
    drop(client);
    server.stop().await;
}
