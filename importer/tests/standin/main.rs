//! The importer against a server: what is published is what was done, whatever happens in between. The server is the stand-in, or, for the tests that do nothing to it that is not to be done to a
//! server, the one that `TRIBUTARY_TEST_MSSQL_URL` names ([`server`]).
#![allow(clippy::unwrap_used)]

mod bad_input;
mod chaos;
mod contracts;
mod evolution;
mod faults;
mod fenced;
mod gate;
mod health;
mod init;
mod lease;
mod load;
mod order;
mod rereads;
mod resume;
mod server;
mod sink;
mod support;
mod times;
mod types;
mod verify;
mod workload;
