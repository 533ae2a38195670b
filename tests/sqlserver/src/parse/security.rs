//! Logins, users, roles, permissions.

use sqlparser::tokenizer::Token;
use tds::SqlError;

use super::{Kind, Name, Reader, Security};

impl Reader<'_> {
    pub(super) fn create_principal(&mut self, word: &str) -> Result<Kind, SqlError> {
        self.parser.advance_token();
        let name = self.identifier()?;
        Ok(Kind::Security(match word {
            "LOGIN" => {
                self.expect("WITH")?;
                Security::CreateLogin { name, password: self.password()?.unwrap_or_default() }
            }
            "USER" => {
                let mut login = Some(name.clone());
                if self.take("FOR") || self.take("FROM") {
                    self.expect("LOGIN")?;
                    login = Some(self.identifier()?);
                } else if self.take_all(&["WITHOUT", "LOGIN"]) {
                    login = None;
                }
                self.rest_of_statement();
                Security::CreateUser { name, login }
            }
            _ => {
                self.rest_of_statement();
                Security::CreateRole(name)
            }
        }))
    }

    /// `PASSWORD = '…' [, CHECK_POLICY = OFF …]`
    fn password(&mut self) -> Result<Option<String>, SqlError> {
        let mut password = None;
        if self.take("PASSWORD") {
            self.expect_token(&Token::Eq)?;
            password = Some(self.string()?);
        }
        self.rest_of_statement();
        Ok(password)
    }

    pub(super) fn alter_principal(&mut self) -> Result<Kind, SqlError> {
        let server = self.take("SERVER");
        if self.take("ROLE") {
            let role = self.identifier()?;
            let adding = self.take("ADD");
            if !adding {
                self.expect("DROP")?;
            }
            self.expect("MEMBER")?;
            let member = self.identifier()?;
            return Ok(Kind::Security(if adding {
                Security::AddMember { role, member, server }
            } else {
                Security::DropMember { role, member, server }
            }));
        }
        if self.take("LOGIN") {
            let name = self.identifier()?;
            let enabled = if self.take("DISABLE") { Some(false) } else { self.take("ENABLE").then_some(true) };
            let password = if self.take("WITH") { self.password()? } else { None };
            self.rest_of_statement();
            return Ok(Kind::Security(Security::AlterLogin { name, password, enabled }));
        }
        self.rest_of_statement();
        Ok(Kind::Security(Security::Nothing))
    }

    pub(super) fn permission(&mut self) -> Result<Kind, SqlError> {
        let state = match self.word().as_deref() {
            Some("GRANT") => 'G',
            Some("DENY") => 'D',
            _ => 'R',
        };
        self.parser.advance_token();
        self.take_all(&["GRANT", "OPTION", "FOR"]);
        let mut permissions = Vec::new();
        loop {
            let mut words = Vec::new();
            while let Some(w) = self.word().filter(|w| !matches!(w.as_str(), "ON" | "TO" | "FROM")) {
                words.push(w);
                self.parser.advance_token();
            }
            // Column lists are accepted, and taken as the whole object.
            if self.peek() == Token::LParen {
                self.skip_parentheses()?;
            }
            if words.is_empty() {
                return self.unexpected();
            }
            permissions.push(words.join(" "));
            if !self.punctuation(&Token::Comma) {
                break;
            }
        }
        let (mut class, mut object) = (None, None::<Name>);
        if self.take("ON") {
            if self.parser.peek_nth_token(1).token == Token::DoubleColon {
                class = self.word();
                self.parser.advance_token();
                self.parser.advance_token();
            }
            object = Some(self.name()?);
        }
        if !self.take("TO") {
            self.expect("FROM")?;
        }
        let mut grantees = vec![self.identifier()?];
        while self.punctuation(&Token::Comma) {
            grantees.push(self.identifier()?);
        }
        if self.at("WITH") && self.at_second("GRANT") || self.at("AS") || self.at("CASCADE") {
            self.parser.advance_token();
            self.rest_of_statement();
        }
        Ok(Kind::Security(Security::Permission { state, permissions, class, object, grantees }))
    }
}
