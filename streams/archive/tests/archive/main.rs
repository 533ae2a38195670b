//! The archive from outside: archiving, kills, damage, and reading that goes over to the live stream.

#![allow(clippy::unwrap_used)]

mod archiving;
mod damage;
mod fused;
mod joined;
mod killed;
mod kinesis;
mod replaying;
mod s3;
mod support;
