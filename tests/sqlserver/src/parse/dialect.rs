//! sqlparser's MsSqlDialect with T-SQL's statement words kept from being read as aliases, and the rewriting of tokens before parsing.

use std::any::TypeId;

use sqlparser::ast::Statement;
use sqlparser::dialect::{Dialect, MsSqlDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Word};
use tds::SqlError;

use crate::message;
use crate::translate::clr::{STATIC, has_methods};

/// [`MsSqlDialect`], but that no word which starts a statement is an alias.
#[derive(Debug)]
pub(crate) struct Tsql;

const INNER: MsSqlDialect = MsSqlDialect {};

impl Dialect for Tsql {
    fn dialect(&self) -> TypeId {
        TypeId::of::<MsSqlDialect>()
    }
    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        INNER.is_delimited_identifier_start(ch)
    }
    fn is_identifier_start(&self, ch: char) -> bool {
        INNER.is_identifier_start(ch)
    }
    fn is_identifier_part(&self, ch: char) -> bool {
        INNER.is_identifier_part(ch)
    }
    fn convert_type_before_value(&self) -> bool {
        true
    }
    fn supports_eq_alias_assignment(&self) -> bool {
        true
    }
    fn supports_try_convert(&self) -> bool {
        true
    }
    fn supports_boolean_literals(&self) -> bool {
        false
    }
    fn supports_nested_comments(&self) -> bool {
        true
    }
    fn supports_object_name_double_dot_notation(&self) -> bool {
        true
    }
    fn supports_dollar_as_money_prefix(&self) -> bool {
        true
    }
    fn is_select_item_alias(&self, explicit: bool, kw: &Keyword, parser: &mut Parser<'_>) -> bool {
        !statement_word(*kw, parser) && INNER.is_select_item_alias(explicit, kw, parser)
    }
    fn is_table_factor_alias(&self, explicit: bool, kw: &Keyword, parser: &mut Parser<'_>) -> bool {
        if *kw == Keyword::OPTION {
            return false;
        }
        !statement_word(*kw, parser) && INNER.is_table_factor_alias(explicit, kw, parser)
    }
    fn parse_statement(&self, _parser: &mut Parser<'_>) -> Option<Result<Statement, ParserError>> {
        None
    }
    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        INNER.get_next_precedence(parser)
    }
}

fn statement_word(kw: Keyword, parser: &Parser<'_>) -> bool {
    // Words that sqlparser has no keyword for are known by their text.
    let unknown = matches!(&parser.get_current_token().token, Token::Word(w) if w.quote_style.is_none() && (w.value.eq_ignore_ascii_case("save") || w.value.eq_ignore_ascii_case("break")));
    unknown
        || matches!(
            kw,
            Keyword::BEGIN
                | Keyword::COMMIT
                | Keyword::ROLLBACK
                | Keyword::USE
                | Keyword::GRANT
                | Keyword::REVOKE
                | Keyword::DENY
                | Keyword::WAITFOR
                | Keyword::CONTINUE
                | Keyword::END
                | Keyword::SET
                | Keyword::SELECT
                | Keyword::WITH
                | Keyword::OUTPUT
                | Keyword::FOR
        )
}

/// Reserved words as SQL Server names them in error 156 rather than 102.
fn is_reserved(word: &str) -> bool {
    matches!(
        word.to_ascii_uppercase().as_str(),
        "SELECT"
            | "FROM"
            | "WHERE"
            | "GROUP"
            | "ORDER"
            | "BY"
            | "HAVING"
            | "INSERT"
            | "INTO"
            | "UPDATE"
            | "DELETE"
            | "SET"
            | "VALUES"
            | "CREATE"
            | "ALTER"
            | "DROP"
            | "TABLE"
            | "INDEX"
            | "VIEW"
            | "JOIN"
            | "ON"
            | "INNER"
            | "LEFT"
            | "RIGHT"
            | "FULL"
            | "OUTER"
            | "CROSS"
            | "UNION"
            | "EXCEPT"
            | "INTERSECT"
            | "AND"
            | "OR"
            | "NOT"
            | "NULL"
            | "IN"
            | "IS"
            | "LIKE"
            | "BETWEEN"
            | "EXISTS"
            | "CASE"
            | "WHEN"
            | "THEN"
            | "ELSE"
            | "END"
            | "BEGIN"
            | "IF"
            | "WHILE"
            | "DECLARE"
            | "EXEC"
            | "EXECUTE"
            | "AS"
            | "TOP"
            | "DISTINCT"
            | "ALL"
            | "USE"
            | "GRANT"
            | "DENY"
            | "REVOKE"
            | "COMMIT"
            | "ROLLBACK"
            | "TRAN"
            | "TRANSACTION"
            | "PRINT"
            | "RETURN"
            | "MERGE"
            | "WITH"
            | "FOR"
            | "KEY"
            | "PRIMARY"
            | "FOREIGN"
            | "REFERENCES"
            | "CONSTRAINT"
            | "DEFAULT"
            | "CHECK"
            | "UNIQUE"
            | "IDENTITY"
            | "DATABASE"
            | "SCHEMA"
            | "USER"
            | "TO"
            | "ADD"
            | "COLUMN"
    )
}

pub(super) fn near(token: &Token, line: u32) -> SqlError {
    match token {
        Token::Word(w) if w.quote_style.is_none() && is_reserved(&w.value) => message::syntax_keyword(&w.value, line),
        Token::Word(w) => message::syntax(&w.value, line),
        Token::EOF => message::syntax("", line),
        Token::SingleQuotedString(s) | Token::NationalStringLiteral(s) => message::syntax(s, line),
        other => message::syntax(&other.to_string(), line),
    }
}

/// sqlparser's error as SQL Server's: the token that was found, and its line.
pub(super) fn fault(e: &ParserError, parser: &Parser<'_>) -> SqlError {
    let text =
        match e {
            ParserError::TokenizerError(s) | ParserError::ParserError(s) => s.as_str(),
            ParserError::RecursionLimitExceeded => return message::error(
                191,
                15,
                "Some part of your SQL statement is nested too deeply. Rewrite the query or break it up into smaller queries."
                    .into(),
            ),
        };
    let here = parser.peek_token();
    let line = text
        .rsplit_once("Line: ")
        .and_then(|(_, rest)| rest.split(',').next())
        .and_then(|l| l.trim().parse().ok())
        .unwrap_or(here.span.start.line as u32);
    match text.split_once("found: ").map(|(_, rest)| rest.rsplit_once(" at Line").map_or(rest, |(found, _)| found)) {
        Some("EOF") => message::syntax("", line),
        Some(found) if is_reserved(found) => message::syntax_keyword(found, line),
        Some(found) => message::syntax(found.trim_matches('\''), line),
        None => near(&here.token, line),
    }
}

/// Byte offset of a location (1-based line and column, columns in characters).
pub(super) fn offset(sql: &str, location: Location) -> usize {
    let mut line = 1;
    let mut start = 0;
    if location.line > 1 {
        for (i, b) in sql.bytes().enumerate() {
            if b == b'\n' {
                line += 1;
                if line == location.line {
                    start = i + 1;
                    break;
                }
            }
        }
    }
    let column = (location.column as usize).saturating_sub(1);
    sql[start..].char_indices().nth(column).map_or(sql.len(), |(i, _)| start + i)
}

fn word(value: &str, at: &TokenWithSpan) -> TokenWithSpan {
    TokenWithSpan {
        token: Token::Word(Word { value: value.into(), quote_style: None, keyword: Keyword::NoKeyword }),
        span: at.span,
    }
}

fn is_word(token: Option<&TokenWithSpan>, text: &str) -> bool {
    matches!(token.map(|t| &t.token), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(text))
}

/// The batch's tokens, without blanks and comments, with ODBC escapes (`{fn x()}`, `{ts '…'}`) and OPTION clauses taken out, and with the words that
/// sqlparser treats specially but T-SQL does not quoted.
pub(super) fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>, SqlError> {
    let raw = Tokenizer::new(&Tsql, sql).tokenize_with_location().map_err(|e| {
        let line = e.location.line as u32;
        if e.message.starts_with("Unterminated string") {
            return SqlError { line, ..message::error(105, 15, "Unclosed quotation mark after the character string ''.".into()) };
        }
        message::syntax(e.message.split('\'').nth(1).unwrap_or(""), line)
    })?;
    let raw: Vec<TokenWithSpan> = raw.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).collect();
    let mut out: Vec<TokenWithSpan> = Vec::with_capacity(raw.len());
    let mut escapes = 0;
    let mut i = 0;
    while i < raw.len() {
        let token = &raw[i];
        match &token.token {
            Token::LBrace => {
                // {fn f(x)}: the call alone; {ts 'x'}: the string alone.
                escapes += 1;
                i += 1;
                if matches!(raw.get(i).map(|t| &t.token), Some(Token::Word(w)) if matches!(w.value.to_ascii_lowercase().as_str(), "fn" | "ts" | "d" | "t" | "oj" | "call"))
                {
                    if is_word(raw.get(i), "call") {
                        out.push(word("EXEC", &raw[i]));
                    }
                    i += 1;
                }
                continue;
            }
            Token::RBrace if escapes > 0 => escapes -= 1,
            Token::Word(w)
                if w.quote_style.is_none()
                    && w.value.eq_ignore_ascii_case("OPTION")
                    && matches!(raw.get(i + 1).map(|t| &t.token), Some(Token::LParen)) =>
            {
                let mut depth = 0;
                i += 1;
                while let Some(t) = raw.get(i) {
                    match t.token {
                        Token::LParen => depth += 1,
                        Token::RParen => depth -= 1,
                        _ => {}
                    }
                    i += 1;
                    if depth == 0 {
                        break;
                    }
                }
                continue;
            }
            Token::Word(w) if w.quote_style.is_none() && special(&w.value) && !is_word(raw.get(i + 1), "zone") => {
                let mut w = w.clone();
                w.keyword = Keyword::NoKeyword;
                out.push(TokenWithSpan { token: Token::Word(w), span: token.span });
            }
            // geometry::Parse(…): the parser would take it for a cast.
            Token::Word(w) if has_methods(&w.value) && matches!(raw.get(i + 1).map(|t| &t.token), Some(Token::DoubleColon)) => {
                let Some(Token::Word(method)) = raw.get(i + 2).map(|t| &t.token) else {
                    return Err(message::syntax("::", token.span.start.line as u32));
                };
                out.push(word(&format!("{}{STATIC}{}", w.value, method.value), token));
                i += 2;
            }
            // "x" is a name under QUOTED_IDENTIFIER ON.
            Token::DoubleQuotedString(s) => {
                out.push(TokenWithSpan {
                    token: Token::Word(Word { value: s.clone(), quote_style: Some('"'), keyword: Keyword::NoKeyword }),
                    span: token.span,
                });
            }
            _ => out.push(token.clone()),
        }
        i += 1;
    }
    Ok(out)
}

/// Words that sqlparser reads as syntax of other dialects and T-SQL as plain names or functions. Types among them are then read as custom types, by
/// their text.
fn special(word: &str) -> bool {
    const WORDS: [&str; 35] = [
        "floor",
        "ceiling",
        "ceil",
        "substring",
        "position",
        "extract",
        "overlay",
        "date",
        "datetime",
        "time",
        "timestamp",
        "interval",
        "struct",
        "array",
        "map",
        "prior",
        "qualify",
        "window",
        "limit",
        "sample",
        "settings",
        "format",
        "final",
        "prewhere",
        "locate",
        "unnest",
        "lateral",
        "text",
        "comment",
        "grouping",
        "match",
        "start",
        "connect",
        "cluster",
        "sort",
    ];
    WORDS.iter().any(|w| word.eq_ignore_ascii_case(w))
}
