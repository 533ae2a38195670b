//! Names that Avro and Protobuf accept: letters, digits and underscores, not beginning with a digit.

use std::collections::HashSet;

/// A name made of any text: what cannot stand in it becomes an underscore, other letters than ASCII's their number.
pub(super) fn identifier(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_ascii_alphanumeric() || c == '_' => name.push(c),
            c if c.is_alphanumeric() => name.push_str(&format!("u{:04X}", u32::from(c))),
            _ => name.push('_'),
        }
    }
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        name.insert(0, '_');
    }
    name
}

/// Gives every column a name of its own. Names that differ in case and underscores alone count as equal, because Protobuf's JSON form and the code that is generated from
/// schemas cannot tell them apart. A Protobuf field that may be absent has a `oneof` of its own beside it, of a name that compilers make of the field's: no other field is called so.
#[derive(Debug, Default)]
pub(super) struct Names {
    folded: HashSet<String>,
    /// Those that were given, and those that compilers make of them.
    used: HashSet<String>,
}

impl Names {
    /// With names that are not to be given.
    pub(super) fn without(taken: &[&str]) -> Self {
        Self { folded: taken.iter().map(|name| folded(name)).collect(), used: HashSet::new() }
    }

    pub(super) fn give(&mut self, column: &str) -> String {
        let plain = identifier(column);
        let mut name = plain.clone();
        let mut count = 1;
        while self.folded.contains(&folded(&name)) || self.used.contains(&name) || self.used.contains(&absent(&name)) {
            count += 1;
            name = format!("{plain}_n{count}");
        }
        self.folded.insert(folded(&name));
        self.used.extend([absent(&name), name.clone()]);
        name
    }
}

/// What compilers call the `oneof` of a field that may be absent.
fn absent(field: &str) -> String {
    format!("{}{field}", if field.starts_with('_') { "X" } else { "_" })
}

fn folded(name: &str) -> String {
    name.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_column_gets_a_name_of_its_own() {
        let mut names = Names::without(&["unavailable"]);
        let given: Vec<String> = ["id", "Order Id", "order_id", "1st", "größe", "", "Unavailable", "OrderId"]
            .iter()
            .map(|name| names.give(name))
            .collect();
        assert_eq!(given, ["id", "Order_Id", "order_id_n2", "_1st", "gru00F6u00DFe", "_", "Unavailable_n2", "OrderId_n3"]);
    }

    #[test]
    fn no_column_is_called_like_the_oneof_of_another() {
        let given = |columns: [&str; 2]| {
            let mut names = Names::default();
            columns.map(|column| names.give(column))
        };
        assert_eq!(given(["", "X$"]), ["_", "X__n2"]);
        assert_eq!(given(["X$", ""]), ["X_", "__n2"]);
    }
}
