//! The archive from outside: archiving, kills, damage, and reading that goes over to the live stream.

#![allow(clippy::unwrap_used)]

mod archiving;
mod damage;
mod expiry;
mod fused;
mod gaps;
mod joined;
mod killed;
mod kinesis;
mod replaying;
mod s3;
mod several;
mod support;
