//! Collations as TDS carries them (five bytes): language, flags, version and sort order, from which follow their names and the encoding of non-Unicode
//! text. Code pages of one byte and UTF-8 are spoken; the East Asian ones, of two bytes, are known by name alone.

use crate::code_page;

/// A collation: language, comparison flags, version and sort order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Collation(pub [u8; 5]);

/// The flag fUTF8 of MS-TDS 2.2.5.1.2, in the third byte's upper half.
const UTF8_FLAG: u32 = 1 << 26;
const IGNORE_CASE: u32 = 1 << 20;
const IGNORE_ACCENT: u32 = 1 << 21;
const IGNORE_KANA: u32 = 1 << 22;
const IGNORE_WIDTH: u32 = 1 << 23;
const BINARY: u32 = 1 << 24;
const BINARY2: u32 = 1 << 25;

/// Collations of SQL Server's own, by their sort order: name, sort order, code page.
const SQL: [(&str, u8, u16); 21] = [
    ("SQL_Latin1_General_CP1_CI_AS", 52, 1252),
    ("SQL_Latin1_General_CP1_CS_AS", 51, 1252),
    ("SQL_Latin1_General_Pref_CP1_CI_AS", 53, 1252),
    ("SQL_Latin1_General_CP1_CI_AI", 54, 1252),
    ("SQL_Latin1_General_CP437_CI_AS", 32, 437),
    ("SQL_Latin1_General_CP437_CS_AS", 31, 437),
    ("SQL_Latin1_General_CP850_CI_AS", 42, 850),
    ("SQL_Latin1_General_CP850_CS_AS", 41, 850),
    ("SQL_Latin1_General_CP1250_CI_AS", 82, 1250),
    ("SQL_Latin1_General_CP1250_CS_AS", 81, 1250),
    ("SQL_Latin1_General_CP1251_CI_AS", 106, 1251),
    ("SQL_Latin1_General_CP1251_CS_AS", 105, 1251),
    ("SQL_Latin1_General_CP1253_CI_AS", 114, 1253),
    ("SQL_Latin1_General_CP1253_CS_AS", 113, 1253),
    ("SQL_Latin1_General_CP1254_CI_AS", 130, 1254),
    ("SQL_Latin1_General_CP1254_CS_AS", 129, 1254),
    ("SQL_Latin1_General_CP1255_CI_AS", 138, 1255),
    ("SQL_Latin1_General_CP1256_CI_AS", 146, 1256),
    ("SQL_Latin1_General_CP1257_CI_AS", 154, 1257),
    ("SQL_Latin1_General_CP1255_CS_AS", 137, 1255),
    ("SQL_Latin1_General_CP1257_CS_AS", 153, 1257),
];

/// Windows collations: what their names begin with, language, code page.
const WINDOWS: [(&str, u32, u16); 32] = [
    ("Latin1_General", 0x0409, 1252),
    ("Albanian", 0x041C, 1250),
    ("Arabic", 0x0401, 1256),
    ("Chinese_PRC", 0x0804, 936),
    ("Chinese_Taiwan_Stroke", 0x0404, 950),
    ("Croatian", 0x041A, 1250),
    ("Cyrillic_General", 0x0419, 1251),
    ("Czech", 0x0405, 1250),
    ("Danish_Norwegian", 0x0406, 1252),
    ("Estonian", 0x0425, 1257),
    ("Finnish_Swedish", 0x040B, 1252),
    ("French", 0x040C, 1252),
    ("Greek", 0x0408, 1253),
    ("Hebrew", 0x040D, 1255),
    ("Hungarian", 0x040E, 1250),
    ("Icelandic", 0x040F, 1252),
    ("Japanese", 0x0411, 932),
    ("Korean_Wansung", 0x0412, 949),
    ("Latvian", 0x0426, 1257),
    ("Lithuanian", 0x0427, 1257),
    ("Macedonian_FYROM", 0x042F, 1251),
    ("Modern_Spanish", 0x0C0A, 1252),
    ("Polish", 0x0415, 1250),
    ("Romanian", 0x0418, 1250),
    ("Slovak", 0x041B, 1250),
    ("Slovenian", 0x0424, 1250),
    ("Thai", 0x041E, 874),
    ("Traditional_Spanish", 0x040A, 1252),
    ("Turkish", 0x041F, 1254),
    ("Ukrainian", 0x0422, 1251),
    ("Vietnamese", 0x042A, 1258),
    ("Uzbek_Latin_90", 0x0443, 1254),
];

impl Collation {
    /// `SQL_Latin1_General_CP1_CI_AS`, what an English installation has.
    pub const LATIN1_GENERAL_CP1_CI_AS: Collation = Collation([0x09, 0x04, 0xD0, 0x00, 0x34]);
    /// `Latin1_General_100_CI_AS_SC_UTF8`.
    pub const LATIN1_GENERAL_100_CI_AS_SC_UTF8: Collation = Collation([0x09, 0x04, 0xD0, 0x24, 0x00]);

    fn of(info: u32, sort: u8) -> Collation {
        let [a, b, c, d] = info.to_le_bytes();
        Collation([a, b, c, d, sort])
    }

    fn info(self) -> u32 {
        let [a, b, c, d, _] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }

    /// By its name; `None`: this server knows no such collation.
    pub fn named(name: &str) -> Option<Collation> {
        if let Some((own, sort, _)) = SQL.iter().find(|(own, ..)| own.eq_ignore_ascii_case(name)) {
            let insensitive = |ending: &str| own.ends_with(ending);
            let case = if insensitive("_CS_AS") { 0 } else { IGNORE_CASE };
            let accent = if insensitive("_AI") { IGNORE_ACCENT } else { 0 };
            return Some(Self::of(0x0409 | case | accent | IGNORE_KANA | IGNORE_WIDTH, *sort));
        }
        let upper = name.to_ascii_uppercase();
        let (lcid, rest) =
            WINDOWS.iter().find_map(|(own, lcid, _)| Some((*lcid, upper.strip_prefix(&own.to_ascii_uppercase())?)))?;
        let mut info = lcid | IGNORE_KANA | IGNORE_WIDTH;
        for part in rest.split('_').filter(|p| !p.is_empty()) {
            match part {
                "CI" => info |= IGNORE_CASE,
                "AI" => info |= IGNORE_ACCENT,
                "KS" => info &= !IGNORE_KANA,
                "WS" => info &= !IGNORE_WIDTH,
                "BIN" => info = info & !(IGNORE_KANA | IGNORE_WIDTH) | BINARY,
                "BIN2" => info = info & !(IGNORE_KANA | IGNORE_WIDTH) | BINARY2,
                "UTF8" => info |= UTF8_FLAG,
                "90" => info |= 1 << 28,
                "100" => info |= 2 << 28,
                "140" => info |= 3 << 28,
                "CS" | "AS" | "SC" | "VSS" | "XJIS" | "BOPOMOFO" => {}
                _ => return None,
            }
        }
        Some(Self::of(info, 0))
    }

    /// Whether non-Unicode text is UTF-8.
    pub fn is_utf8(self) -> bool {
        self.info() & UTF8_FLAG != 0
    }

    /// The code page of non-Unicode text; 65001 for UTF-8.
    pub fn code_page(self) -> u16 {
        if self.is_utf8() {
            return 65001;
        }
        let found = match self.0[4] {
            0 => WINDOWS.iter().find(|(_, lcid, _)| *lcid == self.info() & 0xFFFF).map(|(.., page)| *page),
            sort => SQL.iter().find(|(_, own, _)| *own == sort).map(|(.., page)| *page),
        };
        found.unwrap_or(1252)
    }

    /// Whether this server can write non-Unicode text of the collation.
    pub fn is_spoken(self) -> bool {
        self.is_utf8() || code_page::upper_half(self.code_page()).is_some()
    }

    pub(crate) fn name(self) -> String {
        if let Some((own, ..)) = SQL.iter().find(|(_, sort, _)| *sort == self.0[4]) {
            return (*own).to_string();
        }
        let info = self.info();
        let mut name =
            WINDOWS.iter().find(|(_, lcid, _)| *lcid == info & 0xFFFF).map_or("Latin1_General", |(own, ..)| *own).to_string();
        name.push_str(match info >> 28 {
            1 => "_90",
            2 => "_100",
            3 => "_140",
            _ => "",
        });
        if info & (BINARY | BINARY2) != 0 {
            name.push_str(if info & BINARY2 != 0 { "_BIN2" } else { "_BIN" });
        } else {
            name.push_str(if info & IGNORE_CASE != 0 { "_CI" } else { "_CS" });
            name.push_str(if info & IGNORE_ACCENT != 0 { "_AI" } else { "_AS" });
            name.push_str(if info & IGNORE_KANA != 0 { "" } else { "_KS" });
            name.push_str(if info & IGNORE_WIDTH != 0 { "" } else { "_WS" });
        }
        if self.is_utf8() {
            name.push_str(if info & BINARY2 != 0 { "_UTF8" } else { "_SC_UTF8" });
        }
        name
    }

    /// The characters of the code page's upper half. Pages of two bytes are not spoken: what they say beyond ASCII is lost, as `?`.
    fn upper(self) -> &'static str {
        code_page::upper_half(self.code_page()).unwrap_or_default()
    }

    /// Appends the text in this collation's encoding; what it cannot write becomes `?`, as SQL Server does.
    pub(crate) fn encode(self, text: &str, out: &mut Vec<u8>) {
        if text.is_ascii() || self.is_utf8() {
            out.extend_from_slice(text.as_bytes());
        } else {
            let upper = self.upper();
            out.extend(text.chars().map(|c| code_page::to_byte(upper, c)));
        }
    }

    /// How many bytes the text has in this collation's encoding.
    pub fn encoded_len(self, text: &str) -> usize {
        if text.is_ascii() || self.is_utf8() { text.len() } else { text.chars().count() }
    }

    /// The text as it is once it has been written in this collation's encoding.
    pub fn reduced(self, text: &str) -> String {
        let mut bytes = Vec::with_capacity(text.len());
        self.encode(text, &mut bytes);
        self.decode(&bytes)
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> String {
        if self.is_utf8() || bytes.is_ascii() {
            return String::from_utf8_lossy(bytes).into_owned();
        }
        let upper = self.upper();
        bytes.iter().map(|byte| code_page::from_byte(upper, *byte)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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

    #[test]
    fn names_and_bytes_agree() {
        assert_eq!(Collation::named("sql_latin1_general_cp1_ci_as"), Some(Collation::LATIN1_GENERAL_CP1_CI_AS));
        assert_eq!(Collation::named("Latin1_General_100_CI_AS_SC_UTF8"), Some(Collation::LATIN1_GENERAL_100_CI_AS_SC_UTF8));
        for name in [
            "Polish_CS_AS",
            "Cyrillic_General_100_CI_AI_KS_WS",
            "Latin1_General_BIN2",
            "Greek_BIN",
            "Latin1_General_100_BIN2_UTF8",
            "SQL_Latin1_General_CP850_CI_AS",
        ] {
            assert_eq!(Collation::named(name).unwrap().name(), name);
        }
        let page = |name| Collation::named(name).unwrap().code_page();
        assert_eq!((page("Polish_CS_AS"), page("SQL_Latin1_General_CP437_CS_AS"), page("Thai_CI_AS")), (1250, 437, 874));
        assert!(!Collation::named("Japanese_CI_AS").unwrap().is_spoken());
        assert_eq!((Collation::named("Martian_CI_AS"), Collation::named("Polish_XX")), (None, None));
    }
}
