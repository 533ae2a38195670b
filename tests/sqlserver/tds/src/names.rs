//! Comparing SQL names, whose case does not matter.

/// The last part of a procedure's name, in lower case and without brackets or quotes: `[sys].[sp_ExecuteSql]` is `sp_executesql`.
pub(crate) fn last_part(name: &str) -> String {
    let last = name.trim().rsplit('.').next().unwrap_or_default();
    last.trim_matches(['[', ']', '"']).to_ascii_lowercase()
}

/// Equality of parameter names, with or without their `@`.
pub(crate) fn same_name(a: &str, b: &str) -> bool {
    a.trim_start_matches('@').eq_ignore_ascii_case(b.trim_start_matches('@'))
}
