//! The table of `docs/sinks.md` that says which promise is held by a test for which kind.

use super::Ran;

const PAGE: &str = include_str!("../../../../docs/sinks.md");
const TESTED: &str = "yes";

/// Panics where the kind's column says anything else than what ran, with the rows that are wrong.
pub(super) fn holds(kind: &str, ran: &[(&str, Ran)]) {
    let mut rows = PAGE.lines().skip_while(|line| !line.starts_with("| promise |")).take_while(|line| line.starts_with('|'));
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let header = cells(rows.next().expect("docs/sinks.md has a table of promises"));
    let column = header.iter().position(|name| *name == kind).unwrap_or_else(|| panic!("the table has no column {kind}"));
    let said: Vec<(&str, &str)> = rows.skip(1).map(cells).map(|row| (row[0].trim_matches('`'), row[column])).collect();
    let mut wrong: Vec<String> = Vec::new();
    for (case, ran) in ran {
        let said = said.iter().find(|(promise, _)| promise == case).map(|(_, said)| *said);
        // A letter stands for a reason, which is told below the table.
        let right = match ran {
            Ran::Tested => said == Some(TESTED),
            Ran::NotApplicable => said.is_some_and(|said| said.len() == 1 && PAGE.contains(&format!("\n- *{said}:* "))),
        };
        if !right {
            let expected = if *ran == Ran::Tested { TESTED } else { "the letter of a reason" };
            wrong.push(format!("{case}: {said:?} instead of {expected}"));
        }
    }
    let unknown = said.iter().filter(|(promise, _)| !ran.iter().any(|(case, _)| case == promise));
    wrong.extend(unknown.map(|(promise, _)| format!("{promise}: there is no such case")));
    assert!(wrong.is_empty(), "docs/sinks.md, promises, column {kind}:\n{}", wrong.join("\n"));
}
