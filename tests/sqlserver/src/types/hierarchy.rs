//! hierarchyid as SQL Server keeps it: a path of numbers packed into bits, so that bytes sort as paths do.
//!
//! Every number has a prefix by its size, and ends with a bit that says whether its level ends too (`/`) or another number of the level follows (`.`;
//! the number is then kept one greater). Zero bits fill the last byte.

/// From the least number: fixed bits, `x` for the bits of what the number is above it, `T` for the end of the level.
const FORMS: [(i64, i64, &str); 13] = [
    (0, 3, "01xxT"),
    (4, 7, "100xxT"),
    (8, 15, "101xxxT"),
    (16, 79, "110xx0x1xxxT"),
    (80, 1103, "1110xxx0xxx0x1xxxT"),
    (1104, 5199, "11110xxxxx0xxx0x1xxxT"),
    (5200, 4_294_972_495, "111110xxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
    (4_294_972_496, 281_479_271_683_151, "111111xxxxxxxxxxxxxx0xxxxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
    (-8, -1, "00111xxxT"),
    (-72, -9, "0010xx0x1xxxT"),
    (-4168, -73, "000110xxxxx0xxx0x1xxxT"),
    (-4_294_971_464, -4169, "000101xxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
    (-281_479_271_682_120, -4_294_971_465, "000100xxxxxxxxxxxxxx0xxxxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
];

/// The bytes of a path such as `/1/2.5/`.
pub(crate) fn parse(path: &str) -> Option<Vec<u8>> {
    let inner = path.strip_prefix('/')?;
    let mut bits = Vec::new();
    if !inner.is_empty() {
        for level in inner.strip_suffix('/')?.split('/') {
            let numbers: Vec<i64> = level.split('.').map(|n| n.parse().ok()).collect::<Option<_>>()?;
            for (at, number) in numbers.iter().enumerate() {
                let last = at + 1 == numbers.len();
                push(&mut bits, number.checked_add(i64::from(!last))?, last)?;
            }
        }
    }
    Some(bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |all, (at, bit)| all | u8::from(*bit) << (7 - at))).collect())
}

fn push(bits: &mut Vec<bool>, number: i64, last: bool) -> Option<()> {
    let (least, _, form) = FORMS.iter().find(|(least, most, _)| (*least..=*most).contains(&number))?;
    let above = number - least;
    let mut left = form.bytes().filter(|b| *b == b'x').count();
    for kind in form.bytes() {
        bits.push(match kind {
            b'x' => {
                left -= 1;
                above >> left & 1 == 1
            }
            b'T' => last,
            fixed => fixed == b'1',
        });
    }
    Some(())
}

/// The numbers by levels; `None`: the bytes are no hierarchyid.
fn levels(bytes: &[u8]) -> Option<Vec<Vec<i64>>> {
    let bits: Vec<bool> = bytes.iter().flat_map(|byte| (0..8).map(move |at| byte >> (7 - at) & 1 == 1)).collect();
    let (mut rest, mut levels, mut level) = (bits.as_slice(), Vec::new(), Vec::new());
    while rest.contains(&true) {
        let (least, _, form) = FORMS.iter().find(|(_, _, form)| {
            form.len() <= rest.len()
                && form.bytes().zip(rest).all(|(kind, bit)| !matches!(kind, b'0' | b'1') || (kind == b'1') == *bit)
        })?;
        let above =
            form.bytes().zip(rest).filter(|(kind, _)| *kind == b'x').fold(0i64, |all, (_, bit)| all << 1 | i64::from(*bit));
        let last = rest[form.len() - 1];
        level.push(least + above - i64::from(!last));
        if last {
            levels.push(std::mem::take(&mut level));
        }
        rest = &rest[form.len()..];
    }
    level.is_empty().then_some(levels)
}

pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    let joined = |level: &Vec<i64>| level.iter().map(i64::to_string).collect::<Vec<_>>().join(".") + "/";
    Some(format!("/{}", levels(bytes)?.iter().map(joined).collect::<String>()))
}

pub(crate) fn level(bytes: &[u8]) -> Option<i64> {
    levels(bytes).map(|l| l.len() as i64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_packed_as_sql_server_packs_them() {
        // From Microsoft's pages and samples.
        for (path, bytes) in
            [("/", &[][..]), ("/1/", &[0x58]), ("/2/", &[0x68]), ("/1/1/", &[0x5A, 0xC0]), ("/3/1/", &[0x7A, 0xC0])]
        {
            assert_eq!(parse(path).unwrap(), bytes, "{path}");
        }
        for path in
            ["/", "/0/", "/7/15/16/79/80/1103/1104/", "/5200/4294972496/", "/-1/-8/-9/-72/-73/-4169/", "/1.1/", "/3.2.-5/1/"]
        {
            assert_eq!(text(&parse(path).unwrap()).unwrap(), path);
        }
        for wrong in ["", "1/", "/1", "/a/", "//", "/1..2/"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert!(parse("/1/").unwrap() < parse("/1.1/").unwrap() && parse("/1.1/").unwrap() < parse("/2/").unwrap());
    }
}
