//! Collations as TDS carries them (five bytes), and the two encodings of non-Unicode text that this server speaks: code page 1252 and UTF-8.

/// A collation: language, comparison flags, version and sort order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Collation(pub [u8; 5]);

/// The flag fUTF8 of MS-TDS 2.2.5.1.2, in the third byte's upper half.
const UTF8_FLAG: u32 = 1 << 26;

impl Collation {
    /// `SQL_Latin1_General_CP1_CI_AS`, what an English installation has.
    pub const LATIN1_GENERAL_CP1_CI_AS: Collation = Collation([0x09, 0x04, 0xD0, 0x00, 0x34]);
    /// `Latin1_General_100_CI_AS_SC_UTF8`.
    pub const LATIN1_GENERAL_100_CI_AS_SC_UTF8: Collation = Collation([0x09, 0x04, 0xD0, 0x24, 0x00]);

    /// Whether non-Unicode text is UTF-8; otherwise it is code page 1252.
    pub fn is_utf8(self) -> bool {
        let [a, b, c, d, _] = self.0;
        u32::from_le_bytes([a, b, c, d]) & UTF8_FLAG != 0
    }

    pub(crate) fn name(self) -> &'static str {
        if self.is_utf8() { "Latin1_General_100_CI_AS_SC_UTF8" } else { "SQL_Latin1_General_CP1_CI_AS" }
    }

    /// Appends the text in this collation's encoding; what it cannot write becomes `?`, as SQL Server does.
    pub(crate) fn encode(self, text: &str, out: &mut Vec<u8>) {
        if self.is_utf8() || text.is_ascii() {
            out.extend_from_slice(text.as_bytes());
        } else {
            out.extend(text.chars().map(to_cp1252));
        }
    }

    /// How many bytes [`Self::encode`] appends.
    pub(crate) fn encoded_len(self, text: &str) -> usize {
        if self.is_utf8() || text.is_ascii() { text.len() } else { text.chars().count() }
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> String {
        if self.is_utf8() {
            String::from_utf8_lossy(bytes).into_owned()
        } else {
            bytes.iter().map(|byte| from_cp1252(*byte)).collect()
        }
    }
}

/// Code page 1252 at 0x80 to 0x9F; the five that are unassigned are control characters of the same number, as in Windows.
const CP1252_UPPER: [char; 32] = [
    '\u{20AC}', '\u{81}', '\u{201A}', '\u{192}', '\u{201E}', '\u{2026}', '\u{2020}', '\u{2021}', '\u{2C6}', '\u{2030}',
    '\u{160}', '\u{2039}', '\u{152}', '\u{8D}', '\u{17D}', '\u{8F}', '\u{90}', '\u{2018}', '\u{2019}', '\u{201C}', '\u{201D}',
    '\u{2022}', '\u{2013}', '\u{2014}', '\u{2DC}', '\u{2122}', '\u{161}', '\u{203A}', '\u{153}', '\u{9D}', '\u{17E}', '\u{178}',
];

fn from_cp1252(byte: u8) -> char {
    match byte {
        0x80..=0x9F => CP1252_UPPER[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

fn to_cp1252(c: char) -> u8 {
    match u32::from(c) {
        code @ (0..=0x7F | 0xA0..=0xFF) => code as u8,
        _ => match CP1252_UPPER.iter().position(|upper| *upper == c) {
            Some(at) => 0x80 + at as u8,
            None => b'?',
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_code_page_1252_survives() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = Collation::LATIN1_GENERAL_CP1_CI_AS.decode(&bytes);
        let mut back = Vec::new();
        Collation::LATIN1_GENERAL_CP1_CI_AS.encode(&text, &mut back);
        assert_eq!(back, bytes);
    }

    #[test]
    fn what_the_code_page_lacks_becomes_a_question_mark() {
        let mut out = Vec::new();
        Collation::LATIN1_GENERAL_CP1_CI_AS.encode("€é中", &mut out);
        assert_eq!(out, [0x80, 0xE9, b'?']);
    }

    #[test]
    fn utf8_is_known_by_its_flag() {
        assert!(Collation::LATIN1_GENERAL_100_CI_AS_SC_UTF8.is_utf8());
        assert!(!Collation::LATIN1_GENERAL_CP1_CI_AS.is_utf8());
    }
}
