//! RPC requests taken apart (MS-TDS 2.2.6.6): one message may call several procedures.

use crate::collation::Collation;
use crate::decode;
use crate::error::Result;
use crate::names;
use crate::reader::Reader;
use crate::request::skip_headers;
use crate::session::Parameter;
use crate::type_info;

/// The procedures that the protocol layer answers itself; the rest is the engine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Cursor,
    CursorOpen,
    CursorPrepare,
    CursorExecute,
    CursorPrepExec,
    CursorUnprepare,
    CursorFetch,
    CursorOption,
    CursorClose,
    ExecuteSql,
    Prepare,
    Execute,
    PrepExec,
    PrepExecRpc,
    Unprepare,
    DescribeFirstResultSet,
}

/// In the order of their numbers, from 1; the last has none.
const KNOWN: [(Known, &str); 16] = [
    (Known::Cursor, "sp_cursor"),
    (Known::CursorOpen, "sp_cursoropen"),
    (Known::CursorPrepare, "sp_cursorprepare"),
    (Known::CursorExecute, "sp_cursorexecute"),
    (Known::CursorPrepExec, "sp_cursorprepexec"),
    (Known::CursorUnprepare, "sp_cursorunprepare"),
    (Known::CursorFetch, "sp_cursorfetch"),
    (Known::CursorOption, "sp_cursoroption"),
    (Known::CursorClose, "sp_cursorclose"),
    (Known::ExecuteSql, "sp_executesql"),
    (Known::Prepare, "sp_prepare"),
    (Known::Execute, "sp_execute"),
    (Known::PrepExec, "sp_prepexec"),
    (Known::PrepExecRpc, "sp_prepexecrpc"),
    (Known::Unprepare, "sp_unprepare"),
    (Known::DescribeFirstResultSet, "sp_describe_first_result_set"),
];
const NUMBERED: usize = 15;

/// One procedure to call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rpc {
    /// Empty for a procedure called by its number.
    pub(crate) name: String,
    pub(crate) known: Option<Known>,
    pub(crate) parameters: Vec<Parameter>,
}

/// More parameters than SQL Server takes.
const MOST_PARAMETERS: usize = 2100 + 16;

pub(crate) fn parse(payload: &[u8], server: Collation) -> Result<Vec<Rpc>> {
    const SEPARATOR: u8 = 0xFF;
    const NO_EXECUTION: u8 = 0xFE;
    let mut from = Reader::new(payload, "RPC");
    skip_headers(&mut from)?;
    let mut calls = Vec::new();
    loop {
        let mut call = procedure(&mut from)?;
        let _options = from.u16()?;
        while !matches!(from.peek(), None | Some(SEPARATOR | NO_EXECUTION)) {
            if call.parameters.len() == MOST_PARAMETERS {
                return from.fail("it has too many parameters");
            }
            call.parameters.push(parameter(&mut from, server)?);
        }
        let separator = if from.is_empty() { None } else { Some(from.u8()?) };
        if separator == Some(NO_EXECUTION) {
            return from.fail("it asks for its procedures not to be run");
        }
        calls.push(call);
        if from.is_empty() {
            return Ok(calls);
        }
    }
}

fn procedure(from: &mut Reader<'_>) -> Result<Rpc> {
    let (name, known) = match from.u16()? {
        u16::MAX => match usize::from(from.u16()?) {
            number @ 1..=NUMBERED => (String::new(), Some(KNOWN[number - 1].0)),
            _ => return from.fail("it calls a procedure by an unknown number"),
        },
        0 => return from.fail("its procedure has no name"),
        units => {
            let name = from.utf16(usize::from(units))?;
            let last = names::last_part(&name);
            let known = KNOWN.iter().find(|(_, known)| *known == last).map(|(known, _)| *known);
            (name, known)
        }
    };
    Ok(Rpc { name, known, parameters: Vec::new() })
}

fn parameter(from: &mut Reader<'_>, server: Collation) -> Result<Parameter> {
    const BY_REFERENCE: u8 = 0x01;
    const ENCRYPTED: u8 = 0x08;
    let name = from.b_varchar()?;
    let status = from.u8()?;
    if status & ENCRYPTED != 0 {
        return from.fail("it has an encrypted parameter");
    }
    let announced = type_info::read(from, server)?;
    let value = decode::read(from, &announced)?;
    Ok(Parameter { name, data_type: announced.data_type, value, output: status & BY_REFERENCE != 0 })
}
