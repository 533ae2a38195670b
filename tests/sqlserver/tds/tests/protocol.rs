//! What no driver does on purpose: handles and cursors step by step, attentions at awkward moments, several calls in a message, broken bytes.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use tds::{Encryption, Limits, Options};

#[allow(dead_code)]
mod fake;
#[allow(dead_code)]
mod support;
#[path = "support/wire.rs"]
#[allow(dead_code)]
mod wire;

use support::{start, start_plain};
use wire::{Given, Token, Wire};

const DONE: u8 = 0xFD;
const DONE_PROC: u8 = 0xFE;
const DONE_IN_PROC: u8 = 0xFF;
const MORE: u16 = 1;
const ERROR: u16 = 2;
const COUNT: u16 = 0x10;
const ATTENTION: u16 = 0x20;

const SP_CURSOR: u16 = 1;
const SP_CURSOR_OPEN: u16 = 2;
const SP_CURSOR_PREPARE: u16 = 3;
const SP_CURSOR_EXECUTE: u16 = 4;
const SP_CURSOR_PREP_EXEC: u16 = 5;
const SP_CURSOR_UNPREPARE: u16 = 6;
const SP_CURSOR_FETCH: u16 = 7;
const SP_CURSOR_OPTION: u16 = 8;
const SP_CURSOR_CLOSE: u16 = 9;
const SP_EXECUTE_SQL: u16 = 10;
const SP_PREPARE: u16 = 11;
const SP_EXECUTE: u16 = 12;
const SP_PREP_EXEC: u16 = 13;
const SP_UNPREPARE: u16 = 15;

/// The integers of the `id` column of wide rows, or of the first column.
fn ids(tokens: &[Token], column: usize) -> Vec<i64> {
    let cell = |token: &Token| match token {
        Token::Row(cells) => cells[column].as_ref().map(|bytes| wire::integer(bytes)),
        _ => None,
    };
    tokens.iter().filter_map(cell).collect()
}

fn returned(tokens: &[Token], place: u16) -> Option<i64> {
    tokens.iter().find_map(|token| match token {
        Token::Returned(at, _, value) if *at == place => *value,
        _ => None,
    })
}

fn errors(tokens: &[Token]) -> Vec<i32> {
    let number = |token: &Token| if let Token::Error(number) = token { Some(*number) } else { None };
    tokens.iter().filter_map(number).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_live_until_they_are_unprepared() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    let answer =
        wire.call(SP_PREPARE, &[Given::Out("@handle", None), Given::Text("@a int"), Given::Text("echo"), Given::Int(1)]).await;
    assert_eq!(answer[0], Token::Columns(vec!["@a".to_owned()]));
    assert_eq!(answer[1], Token::Done(DONE_IN_PROC, MORE, 0));
    assert_eq!(answer[2], Token::Status(0));
    assert!(matches!(&answer[3], Token::Returned(0, name, Some(_)) if name == "@handle"));
    assert_eq!(answer[4], Token::Done(DONE_PROC, 0, 0));
    let handle = returned(&answer, 0).unwrap() as i32;
    for n in [3, 4] {
        assert_eq!(ids(&wire.call(SP_EXECUTE, &[Given::Int(handle), Given::Int(n)]).await, 0), [i64::from(n)]);
    }
    assert_eq!(errors(&wire.call(SP_EXECUTE, &[Given::Int(handle)]).await), [8178]);
    assert_eq!(wire.call(SP_UNPREPARE, &[Given::Int(handle)]).await, [Token::Status(0), Token::Done(DONE_PROC, 0, 0)]);
    let answer = wire.call(SP_EXECUTE, &[Given::Int(handle), Given::Int(1)]).await;
    assert_eq!(errors(&answer), [8179]);
    assert_eq!(answer.last(), Some(&Token::Done(DONE_PROC, ERROR, 0)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_prepared_and_run_at_once_and_returns_its_output() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    let parameters = [
        Given::Out("@h", None),
        Given::Text("@a int, @b int output"),
        Given::Text("output"),
        Given::Int(1),
        Given::Out("@b", Some(2)),
    ];
    let answer = wire.call(SP_PREP_EXEC, &parameters).await;
    assert_eq!(returned(&answer, 4), Some(42), "the output parameter, at its place in the call");
    let handle = returned(&answer, 0).unwrap() as i32;
    let answer = wire.call(SP_EXECUTE, &[Given::Int(handle), Given::Int(1), Given::Out("@b", None)]).await;
    assert_eq!(returned(&answer, 2), Some(42));
    let answer = wire.call(SP_EXECUTE_SQL, &[Given::Text("fail"), Given::Text("")]).await;
    assert_eq!(errors(&answer), [547]);
    assert!(answer.contains(&Token::Status(-6)));
    assert_eq!(errors(&wire.call(SP_EXECUTE_SQL, &[Given::Text("echo"), Given::Text("@a nonsense")]).await), [2715]);
    assert_eq!(errors(&wire.call(SP_EXECUTE_SQL, &[Given::Int(1)]).await), [214]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_calls_in_a_message_are_answered_one_after_the_other() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    let call = |n: i32| wire::call(SP_EXECUTE_SQL, &[Given::Text("echo"), Given::Text("@a int"), Given::Int(n)]);
    wire.send(wire::RPC, wire::END, &wire::calls(&[call(1), call(2), call(3)])).await;
    let answer = wire.answer().await;
    assert_eq!(ids(&answer, 0), [1, 2, 3]);
    let ends = answer.iter().filter(|token| matches!(token, Token::Done(DONE_PROC, ..))).cloned().collect::<Vec<_>>();
    assert_eq!(ends, [Token::Done(DONE_PROC, MORE, 0), Token::Done(DONE_PROC, MORE, 0), Token::Done(DONE_PROC, 0, 0)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_moves_over_its_rows() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    let open = [
        Given::Out("@c", None),
        Given::Text("rows 25"),
        Given::Out("@s", Some(8)),
        Given::Out("@k", Some(1)),
        Given::Out("@n", None),
    ];
    let answer = wire.call(SP_CURSOR_OPEN, &open).await;
    let Token::Columns(names) = &answer[0] else { panic!("{answer:?}") };
    assert_eq!(names.last().unwrap(), "ROWSTAT");
    assert_eq!([2, 3, 4].map(|place| returned(&answer, place)), [Some(8), Some(1), Some(25)]);
    let cursor = returned(&answer, 0).unwrap() as i32;
    let moves: [(i32, i32, i32, Vec<i64>); 10] = [
        (2, 0, 10, (0..10).collect()),
        (2, 0, 10, (10..20).collect()),
        (2, 0, 10, (20..25).collect()),
        (2, 0, 10, vec![]),
        (8, 0, 3, vec![22, 23, 24]),
        (4, 0, 3, vec![19, 20, 21]),
        (1, 0, 2, vec![0, 1]),
        (4, 0, 2, vec![]),
        (0x10, 7, 2, vec![6, 7]),
        (0x20, 1, 1, vec![7]),
    ];
    for (kind, row, count, expected) in moves {
        let answer =
            wire.call(SP_CURSOR_FETCH, &[Given::Int(cursor), Given::Int(kind), Given::Int(row), Given::Int(count)]).await;
        assert_eq!(ids(&answer, 4), expected, "fetch {kind:#x} {row} {count}");
        assert!(answer.contains(&Token::Done(DONE_IN_PROC, MORE | COUNT, expected.len() as u64)));
    }
    assert_eq!(errors(&wire.call(SP_CURSOR_CLOSE, &[Given::Int(cursor)]).await), [0i32; 0]);
    assert_eq!(errors(&wire.call(SP_CURSOR_FETCH, &[Given::Int(cursor), Given::Int(2)]).await), [16916]);
    let open = [Given::Out("@c", None), Given::Text("insert 1")];
    assert_eq!(errors(&wire.call(SP_CURSOR_OPEN, &open).await), [16937]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_are_prepared_and_fetch_at_once() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    const AUTO_FETCH: i32 = 0x2000;
    let declared = "@a int";
    let prepare = [Given::Out("@p", None), Given::Text(declared), Given::Text("rows 5"), Given::Int(1), Given::Int(4)];
    let prepared = returned(&wire.call(SP_CURSOR_PREPARE, &prepare).await, 0).unwrap() as i32;
    let options = || [Given::Out("", Some(0x10 | AUTO_FETCH)), Given::Out("", Some(1)), Given::Out("", Some(3))];
    let execute = [Given::Int(prepared), Given::Out("", None)].into_iter().chain(options()).chain([Given::Int(9)]);
    let answer = wire.call(SP_CURSOR_EXECUTE, &execute.collect::<Vec<_>>()).await;
    assert_eq!(ids(&answer, 4), [0, 1, 2], "as many rows as were asked for come with the opening");
    assert_eq!([2, 3, 4].map(|place| returned(&answer, place)), [Some(0x10), Some(1), Some(5)]);
    let cursor = returned(&answer, 1).unwrap() as i32;
    assert_eq!(
        ids(&wire.call(SP_CURSOR_FETCH, &[Given::Int(cursor), Given::Int(2), Given::Int(0), Given::Int(9)]).await, 4),
        [3, 4]
    );
    let answer =
        wire.call(SP_CURSOR_FETCH, &[Given::Int(cursor), Given::Int(0x100), Given::Out("", None), Given::Out("", None)]).await;
    assert_eq!([2, 3].map(|place| returned(&answer, place)), [Some(4), Some(5)], "the cursor's place and its rows");
    assert_eq!(errors(&wire.call(SP_CURSOR_OPTION, &[Given::Int(cursor), Given::Int(2), Given::Text("name")]).await), [0i32; 0]);
    assert_eq!(errors(&wire.call(SP_CURSOR, &[Given::Int(cursor), Given::Int(1), Given::Int(1)]).await), [16929]);
    assert_eq!(errors(&wire.call(SP_CURSOR_UNPREPARE, &[Given::Int(prepared)]).await), [0i32; 0]);
    assert_eq!(errors(&wire.call(SP_CURSOR_UNPREPARE, &[Given::Int(prepared)]).await), [8179]);
    let both = [Given::Out("", None), Given::Out("", None), Given::Text(declared), Given::Text("rows 2")].into_iter();
    let answer = wire.call(SP_CURSOR_PREP_EXEC, &both.chain(options()).chain([Given::Int(9)]).collect::<Vec<_>>()).await;
    assert_eq!(ids(&answer, 4), [0, 1]);
    assert!(returned(&answer, 0).is_some() && returned(&answer, 1).is_some());
    assert_eq!(errors(&wire.call(SP_CURSOR_OPEN, &[Given::Out("", None), Given::Text("fail")]).await), [547, 16945]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn procedures_of_the_protocol_are_known_by_name_too() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    let describe = wire::named("sys.sp_describe_first_result_set", &[Given::Text("rows 1"), Given::Text("@a int")]);
    let execute = wire::named("[sys].[sp_ExecuteSql]", &[Given::Text("echo"), Given::Text("@a int"), Given::Int(5)]);
    wire.send(wire::RPC, wire::END, &wire::calls(&[describe])).await;
    let answer = wire.answer().await;
    let names: Vec<_> =
        answer.iter().filter_map(|token| if let Token::Row(cells) = token { cells[2].clone() } else { None }).collect();
    assert_eq!((names.len(), &names[4]), (12, &wire::utf16("id")));
    wire.send(wire::RPC, wire::END, &wire::calls(&[execute])).await;
    assert_eq!(ids(&wire.answer().await, 0), [5]);
    wire.send(wire::RPC, wire::END, &wire::calls(&[wire::named("output", &[Given::Int(1), Given::Out("@o", None)])])).await;
    let answer = wire.answer().await;
    assert_eq!((returned(&answer, 1), answer.contains(&Token::Status(3))), (Some(43), true));
    wire.send(wire::RPC, wire::END, &wire::calls(&[wire::named("nosuch", &[])])).await;
    assert_eq!(errors(&wire.answer().await), [2812]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_packet_size_is_negotiated_within_bounds() {
    let server = start_plain().await;
    for (wanted, agreed) in [(0u32, 4096), (100, 512), (8000, 8000), (32767, 32767), (1 << 20, 32767)] {
        let mut wire = Wire::dial(server.address).await;
        let mut login = wire::login7("sa", "x");
        login[8..12].copy_from_slice(&wanted.to_le_bytes());
        wire.send(wire::LOGIN, wire::END, &login).await;
        wire.answer().await;
        assert_eq!(ids(&wire.run("rows 3000").await, 4).len(), 3000);
        assert_eq!(wire.longest_packet, agreed, "{wanted}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_does_not_hold_more_rows_than_the_limit() {
    let limits = Limits { cursor_rows: 100, ..Limits::default() };
    let server = start(Options { encryption: Encryption::Off, limits, ..Options::default() }).await;
    let mut wire = Wire::connect(server.address).await;
    let open = |sql| [Given::Out("@c", None), Given::Text(sql)];
    assert_eq!(errors(&wire.call(SP_CURSOR_OPEN, &open("rows 101")).await), [16955]);
    assert_eq!(errors(&wire.call(SP_CURSOR_OPEN, &open("rows 100")).await), [0i32; 0]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attention_is_acknowledged_once_in_its_own_message() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    let acknowledgement = [Token::Done(DONE, ATTENTION, 0)];
    // With nothing under way.
    wire.send(wire::ATTENTION, wire::END, &[]).await;
    assert_eq!(wire.answer().await, acknowledgement);
    for round in 0..50 {
        // In a statement that sends nothing, and in one that never stops to send.
        for sql in ["wait", "endless"] {
            wire.send(wire::BATCH, wire::END, &wire::batch(sql)).await;
            wire.send(wire::ATTENTION, wire::END, &[]).await;
            let answer = wire.answer().await;
            assert_eq!(answer.last(), Some(&Token::Done(DONE, ERROR, 0)), "{sql} {round}");
            assert_eq!(wire.answer().await, acknowledgement, "{sql} {round}");
        }
        // Racing with the end of a short answer.
        wire.send(wire::BATCH, wire::END, &wire::batch("rows 10")).await;
        wire.send(wire::ATTENTION, wire::END, &[]).await;
        wire.answer().await;
        assert_eq!(wire.answer().await, acknowledgement, "rows {round}");
        assert_eq!(ids(&wire.run("rows 2").await, 4), [0, 1], "{round}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_given_up_and_one_that_came_early_are_answered() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    wire.send(wire::BATCH, wire::END | wire::IGNORE, &wire::batch("insert 1")).await;
    assert_eq!(wire.answer().await, [Token::Done(DONE, ERROR, 0)]);
    wire.send(wire::BATCH, wire::END, &wire::batch("rows 2000")).await;
    wire.send(wire::BATCH, wire::END, &wire::batch("rows 3")).await;
    assert_eq!(ids(&wire.answer().await, 4).len(), 2000);
    assert_eq!(ids(&wire.answer().await, 4), [0, 1, 2]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_forgets_the_session_and_its_handles() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    let answer = wire.call(SP_PREPARE, &[Given::Out("", None), Given::Text(""), Given::Text("rows 1"), Given::Int(0)]).await;
    let handle = returned(&answer, 0).unwrap() as i32;
    wire.run("begin").await;
    wire.send(wire::BATCH, wire::END | wire::RESET, &wire::batch("state")).await;
    let answer = wire.answer().await;
    assert_eq!(answer[0], Token::EnvChange(18));
    assert_eq!((ids(&answer, 1), ids(&answer, 2)), (vec![0], vec![1]));
    assert_eq!(errors(&wire.call(SP_EXECUTE, &[Given::Int(handle)]).await), [8179]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_refused_with_a_word() {
    let server = start_plain().await;
    let mut wire = Wire::connect(server.address).await;
    // A table-valued parameter: the statement fails, the connection lives.
    let mut tvp = wire::call(SP_EXECUTE_SQL, &[Given::Text("echo"), Given::Text("@t dbo.t readonly")]);
    tvp.extend([0, 0, 0xF3, 0, 0, 0]);
    wire.send(wire::RPC, wire::END, &wire::calls(&[tvp])).await;
    assert_eq!(errors(&wire.answer().await), [4002]);
    assert_eq!(ids(&wire.run("rows 1").await, 4), [0]);
    wire.send(wire::BULK, wire::END, &[0x81, 0, 0]).await;
    assert_eq!(errors(&wire.answer().await), [4002]);
    assert!(wire.message().await.is_none(), "the connection is closed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_answered_and_the_connection_closed() {
    let server = start_plain().await;
    let broken: [(u8, Vec<u8>); 6] = [
        (wire::BATCH, vec![1, 0, 0, 0]),
        (wire::BATCH, vec![255; 40]),
        (wire::BATCH, [wire::batch("rows 1"), vec![0]].concat()),
        (wire::RPC, wire::calls(&[vec![0xFF, 0xFF, 99, 0, 0, 0]])),
        (wire::RPC, wire::calls(&[wire::call(SP_EXECUTE_SQL, &[Given::Text("echo")])[..20].to_vec()])),
        (0x55, vec![1, 2, 3]),
    ];
    for (kind, payload) in broken {
        let mut wire = Wire::connect(server.address).await;
        wire.send(kind, wire::END, &payload).await;
        assert_eq!(errors(&wire.answer().await), [4002], "{kind} {payload:?}");
        assert!(wire.message().await.is_none(), "{kind} {payload:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_out_of_the_ordinary_are_refused() {
    let server = start_plain().await;
    let mut old = wire::login7("sa", "x");
    old[4..8].copy_from_slice(&0x7100_0001u32.to_le_bytes());
    let mut integrated = wire::login7("sa", "x");
    integrated[25] |= 0x80;
    for (login, number) in [(old, 4002), (integrated, 18452), (wire::login7("sa", "y"), 18456)] {
        let mut wire = Wire::dial(server.address).await;
        wire.send(wire::LOGIN, wire::END, &login).await;
        assert_eq!(errors(&wire.answer().await), [number]);
        assert!(wire.message().await.is_none());
    }
    // A login above the limit, and one that points outside of itself, are not answered at all.
    let mut outside = wire::login7("sa", "x");
    outside[40..44].copy_from_slice(&[0xFF; 4]);
    for login in [vec![0; 200 << 10], outside] {
        let mut wire = Wire::dial(server.address).await;
        wire.send_lossy(wire::LOGIN, &login).await;
        assert!(wire.message().await.is_none());
    }
    server.stop().await;
}

/// Bytes that look random and are the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.next() % most).map(|_| self.next() as u8).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_messages_never_make_the_server_panic() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
    let server = start(Options::default()).await;
    let mut noise = Noise(0x5EED);
    for round in 0..600 {
        // Before the login: as it comes, or in a packet of a kind that is expected there.
        let mut wire = Wire::dial(server.address).await;
        let bytes = noise.bytes(200);
        match round % 3 {
            0 => drop(tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &bytes).await),
            1 => wire.send_lossy(0x12, &bytes).await,
            _ => wire.send_lossy(wire::LOGIN, &bytes).await,
        }
        drop(wire);
        // After it: a valid request with a few bytes changed.
        let mut wire = Wire::connect(server.address).await;
        let parameters = [Given::Text("echo"), Given::Text("@a int, @b nvarchar(9)"), Given::Int(7), Given::Text("abc")];
        let (kind, mut payload) = match round % 3 {
            0 => (wire::RPC, wire::calls(&[wire::call(SP_EXECUTE_SQL, &parameters)])),
            1 => (wire::BATCH, wire::batch("rows 3")),
            _ => (0x0E, [&wire::batch("")[..], &noise.bytes(20)[..]].concat()),
        };
        for _ in 0..noise.next() % 4 {
            let at = noise.next() as usize % payload.len();
            payload[at] = noise.next() as u8;
        }
        wire.send_lossy(kind, &payload).await;
        wire.message().await;
    }
    server.stop().await;
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_makes_its_session_wait() {
    // What the operating system buffers for a connection is a few megabytes; this many rows are two hundred.
    const FAR_TOO_MANY: u64 = 2_000_000;
    let server = start_plain().await;
    let mut bystander = Wire::connect(server.address).await;
    let mut idle = Wire::connect(server.address).await;
    idle.send(wire::BATCH, wire::END, &wire::batch("endless")).await;
    let mut before = u64::MAX;
    loop {
        for _ in 0..100 {
            bystander.run("insert 1").await;
        }
        let now = server.rows.load(Ordering::Relaxed);
        assert!(now < FAR_TOO_MANY);
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    server.stop().await;
}

/// One client's part in the crowd: results read whole, cancelled, given up by hanging up.
async fn one_of_many(address: std::net::SocketAddr, seed: u64) {
    let mut noise = Noise(seed);
    let mut wire = Wire::connect(address).await;
    for _ in 0..40 {
        match noise.next() % 6 {
            0 => {
                let rows = noise.next() % 3000;
                assert_eq!(ids(&wire.run(&format!("rows {rows}")).await, 4).len() as u64, rows);
            }
            1 => assert_eq!(
                ids(&wire.call(SP_EXECUTE_SQL, &[Given::Text("echo"), Given::Text("@a int"), Given::Int(9)]).await, 0),
                [9]
            ),
            2 => assert_eq!(errors(&wire.run("fail").await), [547]),
            3 => {
                wire.send(wire::BATCH, wire::END, &wire::batch("endless")).await;
                wire.send(wire::ATTENTION, wire::END, &[]).await;
                wire.answer().await;
                assert_eq!(wire.answer().await, [Token::Done(DONE, ATTENTION, 0)]);
            }
            4 => {
                // Hangs up in the middle of a result that never ends, with the server blocked in sending it.
                wire.send(wire::BATCH, wire::END, &wire::batch("endless")).await;
                tokio::io::AsyncReadExt::read_exact(&mut wire.stream, &mut [0; 5000]).await.unwrap();
                wire = Wire::connect(address).await;
            }
            _ => {
                wire.send(wire::BATCH, wire::END, &wire::batch("wait")).await;
                wire = Wire::connect(address).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_come_and_go_and_no_session_stays_behind() {
    let server = start_plain().await;
    let clients: Vec<_> = (1..=32).map(|seed| tokio::spawn(one_of_many(server.address, seed * 7919))).collect();
    for client in clients {
        client.await.unwrap();
    }
    // Returns only when every session's thread has ended.
    server.stop().await;
}
