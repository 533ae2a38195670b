//! Where entities go: SQLite, Postgres, DynamoDB, SNS, behind one trait; and reading them back.
