//! The migrations are compiled in: a change of theirs must rebuild this crate.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
