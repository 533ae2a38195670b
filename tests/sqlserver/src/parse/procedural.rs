//! Control of flow, variables, transactions and procedure calls.

use sqlparser::ast::{BinaryOperator, Expr, Ident};
use sqlparser::tokenizer::Token;
use tds::SqlError;

use super::{Argument, Declaration, Kind, Reader, Statement};
use crate::types::{self, Declared};

/// `a op b` for `SET @a op= b`.
pub(super) fn compound(operator: &Token) -> Option<BinaryOperator> {
    // `+=` comes as two tokens from the tokenizer.
    Some(match operator {
        Token::Plus => BinaryOperator::Plus,
        Token::Minus => BinaryOperator::Minus,
        Token::Mul => BinaryOperator::Multiply,
        Token::Div => BinaryOperator::Divide,
        Token::Mod => BinaryOperator::Modulo,
        Token::Ampersand => BinaryOperator::BitwiseAnd,
        Token::Pipe => BinaryOperator::BitwiseOr,
        Token::Caret => BinaryOperator::BitwiseXor,
        _ => return None,
    })
}

impl Reader<'_> {
    /// The value after `=` or `op=`, as an expression over what stands on the left.
    pub(super) fn assigned(&mut self, left: Ident) -> Result<Expr, SqlError> {
        if let Some(op) = compound(&self.peek()) {
            self.parser.advance_token();
            self.expect_token(&Token::Eq)?;
            let right = self.expression()?;
            let left = Expr::Identifier(left);
            return Ok(Expr::BinaryOp { left: Box::new(left), op, right: Box::new(Expr::Nested(Box::new(right))) });
        }
        self.expect_token(&Token::Eq)?;
        self.expression()
    }

    /// A declared type, read by its text: name, optional arguments.
    pub(super) fn declared(&mut self) -> Result<Declared, SqlError> {
        let mut text = self.identifier()?;
        while self.punctuation(&Token::Period) {
            text = self.identifier()?;
        }
        if text.eq_ignore_ascii_case("double") && self.take("PRECISION") {
            text = "float".into();
        }
        for word in ["VARYING"] {
            if self.take(word) {
                text.push_str(" varying");
            }
        }
        if text.eq_ignore_ascii_case("national") {
            text = format!("n{}", self.identifier()?);
        }
        if self.punctuation(&Token::LParen) {
            text.push('(');
            loop {
                match self.peek() {
                    Token::RParen => break,
                    Token::EOF => return self.unexpected(),
                    token => text.push_str(&token.to_string()),
                }
                self.parser.advance_token();
            }
            self.parser.advance_token();
            text.push(')');
        }
        types::parse(&text, 1).or_else(|e| if e.number == types::UNKNOWN { Ok(Declared::alias(&text)) } else { Err(e) })
    }

    pub(super) fn declare(&mut self) -> Result<Kind, SqlError> {
        self.expect("DECLARE")?;
        let mut list = Vec::new();
        loop {
            let name = self.identifier()?;
            self.take("AS");
            if self.at("TABLE") {
                self.parser.advance_token();
                let mut table = self.table_body()?;
                table.name.object.clone_from(&name);
                list.push(Declaration { name, what: types::parse("int", 1)?, initial: None, table: Some(Box::new(table)) });
            } else {
                let what = self.declared()?;
                let initial = if self.punctuation(&Token::Eq) { Some(self.expression()?) } else { None };
                list.push(Declaration { name, what, initial, table: None });
            }
            if !self.punctuation(&Token::Comma) {
                return Ok(Kind::Declare(list));
            }
        }
    }

    pub(super) fn set(&mut self) -> Result<Kind, SqlError> {
        self.expect("SET")?;
        if let Token::Word(w) = self.peek()
            && w.value.starts_with('@')
        {
            self.parser.advance_token();
            let value = self.assigned(Ident::new(&w.value))?;
            return Ok(Kind::SetVariable { name: w.value, value });
        }
        if self.at("TRANSACTION") {
            let mut words = Vec::new();
            while let Some(w) = self.word().filter(|_| words.len() < 5) {
                let last = matches!(w.as_str(), "UNCOMMITTED" | "COMMITTED" | "SERIALIZABLE" | "SNAPSHOT")
                    || (w == "READ" && words.last().is_some_and(|l| l == "REPEATABLE"));
                self.parser.advance_token();
                words.push(w);
                if last {
                    break;
                }
            }
            return Ok(Kind::SetOption(words));
        }
        // SET NOCOUNT, XACT_ABORT ON; SET LOCK_TIMEOUT 1000; SET DATEFORMAT mdy; SET IDENTITY_INSERT dbo.t ON
        let mut words = vec![self.identifier()?.to_ascii_uppercase()];
        while self.punctuation(&Token::Comma) {
            words.push(self.identifier()?.to_ascii_uppercase());
        }
        if words[0] == "STATISTICS" || words[0] == "OFFSETS" {
            words.push(self.identifier()?.to_ascii_uppercase());
        }
        if words[0] == "IDENTITY_INSERT" {
            words.push(self.name()?.to_string());
        }
        match self.peek() {
            Token::Word(w) => {
                self.parser.advance_token();
                words.push(w.value.to_ascii_uppercase());
            }
            Token::Number(..) | Token::Minus => words.push(self.integer()?.to_string()),
            Token::SingleQuotedString(s) | Token::HexStringLiteral(s) => {
                self.parser.advance_token();
                words.push(s);
            }
            _ => return self.unexpected(),
        }
        Ok(Kind::SetOption(words))
    }

    pub(super) fn condition(&mut self) -> Result<Kind, SqlError> {
        self.expect("IF")?;
        let condition = self.expression()?;
        self.skip_semicolons();
        let then = Box::new(self.statement()?);
        // One semicolon may end the statement before ELSE.
        if self.peek() == Token::SemiColon && self.at_second("ELSE") {
            self.parser.advance_token();
        }
        let otherwise = if self.take("ELSE") { Some(Box::new(self.statement()?)) } else { None };
        Ok(Kind::If { condition, then, otherwise })
    }

    fn until_end(&mut self) -> Result<Vec<Statement>, SqlError> {
        let mut list = Vec::new();
        loop {
            self.skip_semicolons();
            if self.take("END") {
                return Ok(list);
            }
            if self.peek() == Token::EOF {
                return self.unexpected();
            }
            list.push(self.statement()?);
        }
    }

    pub(super) fn begin(&mut self) -> Result<Kind, SqlError> {
        self.expect("BEGIN")?;
        self.take("DISTRIBUTED");
        if self.take("TRAN") || self.take("TRANSACTION") {
            self.transaction_name()?;
            if self.take_all(&["WITH", "MARK"]) && matches!(self.peek(), Token::SingleQuotedString(_)) {
                self.parser.advance_token();
            }
            return Ok(Kind::BeginTransaction);
        }
        if self.take("TRY") {
            let body = self.until_end()?;
            self.expect("TRY")?;
            self.skip_semicolons();
            self.expect("BEGIN")?;
            self.expect("CATCH")?;
            let handler = self.until_end()?;
            self.expect("CATCH")?;
            return Ok(Kind::TryCatch { body, handler });
        }
        Ok(Kind::Block(self.until_end()?))
    }

    /// A transaction's or savepoint's name, if one follows.
    fn transaction_name(&mut self) -> Result<Option<String>, SqlError> {
        match self.peek() {
            Token::Word(w)
                if w.quote_style.is_some()
                    || (!super::flow::starts_statement(&w.value) && !w.value.eq_ignore_ascii_case("END")) =>
            {
                self.parser.advance_token();
                Ok(Some(w.value))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn commit(&mut self) -> Result<Kind, SqlError> {
        self.expect("COMMIT")?;
        if self.take("TRAN") || self.take("TRANSACTION") {
            self.transaction_name()?;
        } else {
            self.take("WORK");
        }
        Ok(Kind::Commit)
    }

    pub(super) fn rollback(&mut self) -> Result<Kind, SqlError> {
        self.expect("ROLLBACK")?;
        if self.take("TRAN") || self.take("TRANSACTION") {
            return Ok(Kind::Rollback(self.transaction_name()?));
        }
        self.take("WORK");
        Ok(Kind::Rollback(None))
    }

    pub(super) fn return_(&mut self) -> Result<Kind, SqlError> {
        self.expect("RETURN")?;
        let value = match self.peek() {
            Token::Number(..) | Token::Minus | Token::LParen => Some(self.expression()?),
            Token::Word(w) if w.value.starts_with('@') => Some(self.expression()?),
            _ => None,
        };
        Ok(Kind::Return(value))
    }

    pub(super) fn raiserror(&mut self) -> Result<Kind, SqlError> {
        self.expect("RAISERROR")?;
        self.expect_token(&Token::LParen)?;
        let mut arguments = vec![self.expression()?];
        while self.punctuation(&Token::Comma) {
            arguments.push(self.expression()?);
        }
        self.expect_token(&Token::RParen)?;
        if self.at("WITH") && (self.at_second("NOWAIT") || self.at_second("LOG") || self.at_second("SETERROR")) {
            self.parser.advance_token();
            self.parser.advance_token();
        }
        Ok(Kind::Raiserror { arguments })
    }

    pub(super) fn throw(&mut self) -> Result<Kind, SqlError> {
        self.expect("THROW")?;
        let bare = match self.peek() {
            Token::Number(..) => false,
            Token::Word(w) => !w.value.starts_with('@'),
            _ => true,
        };
        if bare {
            return Ok(Kind::Throw(None));
        }
        let number = self.expression()?;
        self.expect_token(&Token::Comma)?;
        let text = self.expression()?;
        self.expect_token(&Token::Comma)?;
        let state = self.expression()?;
        Ok(Kind::Throw(Some(Box::new([number, text, state]))))
    }

    pub(super) fn execute(&mut self) -> Result<Kind, SqlError> {
        self.parser.advance_token();
        if self.punctuation(&Token::LParen) {
            let mut parts = vec![self.expression()?];
            while self.punctuation(&Token::Comma) {
                parts.push(self.expression()?);
            }
            self.expect_token(&Token::RParen)?;
            return Ok(Kind::ExecuteText(parts));
        }
        self.procedure()
    }

    /// `[@status =] procedure [@p =] value [OUTPUT], …`
    pub(super) fn procedure(&mut self) -> Result<Kind, SqlError> {
        let mut status = None;
        let mut procedure = self.name()?;
        if procedure.object.starts_with('@') && self.punctuation(&Token::Eq) {
            status = Some(std::mem::take(&mut procedure.object));
            procedure = self.name()?;
        }
        let mut arguments = Vec::new();
        // ODBC's {call p(1, 2)} brings parentheses.
        let closing = self.punctuation(&Token::LParen);
        while !matches!(self.peek(), Token::EOF | Token::SemiColon | Token::RParen)
            && !self.word().is_some_and(|w| super::flow::starts_statement(&w))
        {
            arguments.push(self.argument()?);
            if !self.punctuation(&Token::Comma) {
                break;
            }
        }
        if closing {
            self.expect_token(&Token::RParen)?;
        }
        if self.at("WITH") && (self.at_second("RECOMPILE") || self.at_second("RESULT")) {
            self.parser.advance_token();
            self.rest_of_statement();
        }
        Ok(Kind::Execute { procedure, arguments, status })
    }

    fn argument(&mut self) -> Result<Argument, SqlError> {
        let mut name = None;
        if let Token::Word(w) = self.peek()
            && w.value.starts_with('@')
            && self.parser.peek_nth_token(1).token == Token::Eq
        {
            self.parser.advance_token();
            self.parser.advance_token();
            name = Some(w.value);
        }
        let value = match self.peek() {
            Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case("default") => {
                self.parser.advance_token();
                None
            }
            // A bare word is a string: EXEC sp_help orders
            Token::Word(w) if !w.value.starts_with('@') && !w.value.eq_ignore_ascii_case("null") => {
                let text = self.name()?.to_string();
                Some(Expr::value(sqlparser::ast::Value::NationalStringLiteral(text)))
            }
            _ => Some(self.expression()?),
        };
        let output = self.take("OUTPUT") || self.take("OUT");
        Ok(Argument { name, value, output })
    }
}
