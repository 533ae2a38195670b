//! T-SQL scripts: the statements of a batch, with their lines.
//!
//! Expressions and queries are parsed by sqlparser's MsSqlDialect; the statements around them (control of flow, DDL, DML, permissions) are read here
//! from the same token stream, because T-SQL needs no semicolon between statements and sqlparser's statements know less of T-SQL than its queries.

mod data;
mod definition;
mod dialect;
mod flow;
mod merge;
mod procedural;
mod security;
mod statement;

use std::sync::atomic::{AtomicU64, Ordering};

use sqlparser::ast::{Expr, Query};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;
use tds::SqlError;

use crate::message;

pub(crate) use dialect::Tsql;
pub(crate) use merge::{Change, Merge};
pub(crate) use statement::{
    AlterTable, Argument, ColumnDefinition, Constraint, ConstraintKind, Declaration, Delete, Droppable, IndexDefinition, Insert,
    Kind, Name, Output, Security, Source, Statement, TableDefinition, Update,
};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Parses a batch. A syntax error refuses the whole batch, as SQL Server does.
pub(crate) fn script(sql: &str) -> Result<Vec<Statement>, SqlError> {
    let mut reader = Reader::new(sql)?;
    let mut statements = Vec::new();
    loop {
        reader.skip_semicolons();
        if reader.peek() == Token::EOF {
            return Ok(statements);
        }
        statements.push(reader.statement()?);
    }
}

/// Parses one expression, as the catalog keeps defaults and computed columns.
pub(crate) fn expression(sql: &str) -> Result<Expr, SqlError> {
    let mut reader = Reader::new(sql)?;
    reader.expression()
}

/// Reads statements from sqlparser's token stream.
pub(crate) struct Reader<'a> {
    parser: Parser<'a>,
    sql: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(sql: &'a str) -> Result<Self, SqlError> {
        let tokens = dialect::tokens(sql)?;
        Ok(Reader { parser: Parser::new(&Tsql).with_recursion_limit(120).with_tokens_with_locations(tokens), sql, depth: 0 })
    }

    fn peek(&self) -> Token {
        self.parser.peek_token().token
    }

    fn line(&self) -> u32 {
        (self.parser.peek_token().span.start.line as u32).max(1)
    }

    fn skip_semicolons(&mut self) {
        while self.parser.consume_token(&Token::SemiColon) {}
    }

    /// The error that the next token is unexpected.
    fn unexpected<T>(&self) -> Result<T, SqlError> {
        let token = self.parser.peek_token();
        Err(dialect::near(&token.token, self.line()))
    }

    fn fault(&self, e: &ParserError) -> SqlError {
        dialect::fault(e, &self.parser)
    }

    fn expression(&mut self) -> Result<Expr, SqlError> {
        self.parser.parse_expr().map_err(|e| self.fault(&e))
    }

    fn query(&mut self) -> Result<Box<Query>, SqlError> {
        self.parser.parse_query().map_err(|e| self.fault(&e))
    }

    /// The next word, upper-cased, if the next token is one (quoted names are no words).
    fn word(&self) -> Option<String> {
        self.word_at(0)
    }

    fn word_at(&self, n: usize) -> Option<String> {
        match &self.parser.peek_nth_token_ref(n).token {
            Token::Word(w) if w.quote_style.is_none() => Some(w.value.to_ascii_uppercase()),
            _ => None,
        }
    }

    fn at(&self, word: &str) -> bool {
        matches!(&self.parser.peek_token_ref().token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
    }

    fn at_second(&self, word: &str) -> bool {
        self.word_at(1).as_deref() == Some(word)
    }

    /// Takes the word if it is next.
    fn take(&mut self, word: &str) -> bool {
        let found = self.at(word);
        if found {
            self.parser.advance_token();
        }
        found
    }

    fn take_all(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(i, w)| self.word_at(i).as_deref() == Some(*w));
        if found {
            words.iter().for_each(|_| self.parser.advance_token());
        }
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), SqlError> {
        if self.take(word) { Ok(()) } else { self.unexpected() }
    }

    fn punctuation(&mut self, token: &Token) -> bool {
        self.parser.consume_token(token)
    }

    fn expect_token(&mut self, token: &Token) -> Result<(), SqlError> {
        if self.punctuation(token) { Ok(()) } else { self.unexpected() }
    }

    /// An identifier, quoted or not.
    fn identifier(&mut self) -> Result<String, SqlError> {
        match self.peek() {
            Token::Word(w) => {
                self.parser.advance_token();
                Ok(w.value)
            }
            Token::DoubleQuotedString(s) => {
                self.parser.advance_token();
                Ok(s)
            }
            _ => self.unexpected(),
        }
    }

    fn name(&mut self) -> Result<Name, SqlError> {
        let mut parts = vec![self.identifier()?];
        while self.punctuation(&Token::Period) {
            // `shop..orders`: the schema is left to the default.
            if self.peek() == Token::Period {
                parts.push(String::new());
            } else {
                parts.push(self.identifier()?);
            }
        }
        let object = parts.pop().unwrap_or_default();
        let schema = parts.pop().filter(|s| !s.is_empty());
        let database = parts.pop().filter(|s| !s.is_empty());
        Ok(Name { database, schema, object })
    }

    fn names(&mut self) -> Result<Vec<Name>, SqlError> {
        let mut names = vec![self.name()?];
        while self.punctuation(&Token::Comma) {
            names.push(self.name()?);
        }
        Ok(names)
    }

    /// `(a, b)`.
    fn columns(&mut self) -> Result<Vec<String>, SqlError> {
        self.expect_token(&Token::LParen)?;
        let mut names = vec![self.identifier()?];
        while self.punctuation(&Token::Comma) {
            names.push(self.identifier()?);
        }
        self.expect_token(&Token::RParen)?;
        Ok(names)
    }

    fn string(&mut self) -> Result<String, SqlError> {
        match self.peek() {
            Token::SingleQuotedString(s) | Token::NationalStringLiteral(s) => {
                self.parser.advance_token();
                Ok(s)
            }
            _ => self.unexpected(),
        }
    }

    fn integer(&mut self) -> Result<i64, SqlError> {
        let negative = self.punctuation(&Token::Minus);
        match self.peek() {
            Token::Number(n, _) => {
                self.parser.advance_token();
                let n: i64 = n.parse().map_err(|_| message::syntax(&n, self.line()))?;
                Ok(if negative { -n } else { n })
            }
            _ => self.unexpected(),
        }
    }

    /// Skips a parenthesised list, nested ones and all.
    fn skip_parentheses(&mut self) -> Result<(), SqlError> {
        self.expect_token(&Token::LParen)?;
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                Token::EOF => return self.unexpected(),
                _ => {}
            }
            self.parser.advance_token();
        }
        Ok(())
    }

    /// The words and other tokens up to the statement's end, upper-cased: for statements that are only looked through for what matters.
    fn rest_of_statement(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        let line = self.line();
        loop {
            let token = self.parser.peek_token();
            match &token.token {
                Token::EOF | Token::SemiColon => return words,
                Token::Word(w)
                    if w.quote_style.is_none() && token.span.start.line as u32 > line && flow::starts_statement(&w.value) =>
                {
                    return words;
                }
                Token::Word(w) => words.push(w.value.to_ascii_uppercase()),
                other => words.push(other.to_string()),
            }
            self.parser.advance_token();
        }
    }

    /// The source text between two token positions, as views and defaults keep it.
    fn text_from(&self, start: sqlparser::tokenizer::Location) -> String {
        let end = self.parser.peek_token();
        let from = dialect::offset(self.sql, start);
        let to = if end.token == Token::EOF { self.sql.len() } else { dialect::offset(self.sql, end.span.start) };
        self.sql.get(from..to).unwrap_or_default().trim().to_string()
    }

    fn statement(&mut self) -> Result<Statement, SqlError> {
        self.depth += 1;
        if self.depth > 60 {
            return Err(message::error(
                191,
                15,
                "Some part of your SQL statement is nested too deeply. Rewrite the query or break it up into smaller queries."
                    .into(),
            ));
        }
        let line = self.line();
        let kind = self.kind()?;
        self.depth -= 1;
        Ok(Statement { kind, line, id: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    fn keyword(&self) -> Keyword {
        match &self.parser.peek_token_ref().token {
            Token::Word(w) if w.quote_style.is_none() => w.keyword,
            _ => Keyword::NoKeyword,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn statements_need_no_semicolons() {
        let s = script(
            "DECLARE @a int = 1 SET @a = @a + 1 SELECT @a AS x SELECT 2 IF @a > 1 PRINT 'y' ELSE PRINT 'n' BEGIN TRAN COMMIT",
        )
        .unwrap();
        assert_eq!(s.len(), 7);
        let s = script("SELECT * FROM dbo.t\nUPDATE dbo.t SET a += 1 WHERE b = 2\nDELETE FROM dbo.t BEGIN TRY SELECT 1/0 END TRY BEGIN CATCH SELECT ERROR_NUMBER() END CATCH").unwrap();
        assert_eq!(s.len(), 4);
        assert_eq!(s[1].line, 2);
    }

    #[test]
    fn errors_name_the_token_and_the_line() {
        let e = script("SELECT 1\nSELEC 2 FROM").unwrap_err();
        assert_eq!((e.number, e.line), (102, 2), "{e:?}");
        let e = script("SELECT FROM dbo.t WHERE").unwrap_err();
        assert!([102, 156].contains(&e.number), "{e:?}");
    }

    #[test]
    fn tables_are_read_with_all_that_belongs_to_them() {
        let s = script(
            "CREATE TABLE dbo.t (id int IDENTITY(1,1) NOT NULL CONSTRAINT pk PRIMARY KEY CLUSTERED, a decimal(10,2) NULL DEFAULT (0), b AS (a * 2) PERSISTED, \
             c nvarchar(max) COLLATE Latin1_General_BIN2, CONSTRAINT fk FOREIGN KEY (a) REFERENCES dbo.u (id) ON DELETE CASCADE, CHECK (a > 0)) ON [PRIMARY]",
        )
        .unwrap();
        let Kind::CreateTable(t) = &s[0].kind else { panic!("{s:?}") };
        assert_eq!((t.columns.len(), t.constraints.len()), (4, 3));
        assert_eq!(t.columns[2].computed.as_ref().unwrap().0, "(a * 2)");
    }
}
