//! Names for entities and edges: singular, plural, and unique within their place.

/// English words whose plural does not follow from the rules.
const IRREGULAR: [(&str, &str); 6] =
    [("person", "people"), ("child", "children"), ("man", "men"), ("woman", "women"), ("datum", "data"), ("index", "indices")];

/// A table's name in snake case: `OrderItems` and `order items` are `order_items`.
pub(super) fn snake(name: &str) -> String {
    let mut out = String::new();
    let chars: Vec<char> = name.chars().collect();
    for (index, &c) in chars.iter().enumerate() {
        if !c.is_alphanumeric() {
            out.push('_');
            continue;
        }
        let after_lower = index > 0 && (chars[index - 1].is_lowercase() || chars[index - 1].is_numeric());
        let ends_acronym =
            index > 0 && chars[index - 1].is_uppercase() && chars.get(index + 1).is_some_and(|next| next.is_lowercase());
        if c.is_uppercase() && (after_lower || ends_acronym) {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    let parts: Vec<&str> = out.split('_').filter(|part| !part.is_empty()).collect();
    parts.join("_")
}

/// The last word of a name in singular: `order_items` is `order_item`.
pub(super) fn singular(name: &str) -> String {
    let (head, word) = last_word(name);
    let stem = |cut: usize, end: &str| format!("{head}{}{end}", &word[..word.len() - cut]);
    if let Some((one, _)) = IRREGULAR.iter().find(|(_, many)| *many == word) {
        return format!("{head}{one}");
    }
    let ends = |end: &str| word.len() > end.len() && word.ends_with(end);
    if ends("ies") {
        stem(3, "y")
    } else if ends("sses")
        || ends("xes")
        || ends("ches")
        || ends("shes")
        || ends("zes")
        || ends("uses") && !ends("ouses") && !ends("auses")
    {
        stem(2, "")
    } else if ends("s") && !ends("ss") && !ends("us") && !ends("is") {
        stem(1, "")
    } else {
        name.to_owned()
    }
}

/// The last word of a name in plural: `order_item` is `order_items`; a plural stays.
pub(super) fn plural(name: &str) -> String {
    if singular(name) != name {
        return name.to_owned();
    }
    let (head, word) = last_word(name);
    if let Some((_, many)) = IRREGULAR.iter().find(|(one, _)| *one == word) {
        return format!("{head}{many}");
    }
    let before_y = word.strip_suffix('y').and_then(|stem| stem.chars().last());
    if before_y.is_some_and(|c| !matches!(c, 'a' | 'e' | 'i' | 'o' | 'u')) {
        return format!("{head}{}ies", &word[..word.len() - 1]);
    }
    let hissing = ["s", "x", "z", "ch", "sh"].iter().any(|end| word.ends_with(end));
    format!("{name}{}", if hissing { "es" } else { "s" })
}

fn last_word(name: &str) -> (&str, &str) {
    match name.rfind('_') {
        Some(at) => name.split_at(at + 1),
        None => ("", name),
    }
}

/// A reference column without what says that it is one: `customer_id` is `customer`. `None` if nothing says so.
pub(super) fn referent(column: &str) -> Option<String> {
    let name = snake(column);
    let stem = ["_id", "_key", "_fk", "_no", "_code", "_guid", "_uuid"].iter().find_map(|end| name.strip_suffix(end))?;
    (!stem.is_empty()).then(|| stem.to_owned())
}

/// A name that entities may have: lower-case ASCII letters, digits, `_` and `-`, beginning with a letter.
pub(super) fn entity(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    let plain = plain.trim_matches('_').to_owned();
    if plain.starts_with(|c: char| c.is_ascii_lowercase()) {
        plain
    } else {
        format!("t_{plain}").trim_end_matches('_').to_owned()
    }
}

/// The first candidate that is not taken, or the last one with a number.
pub(super) fn unique(candidates: &[String], taken: impl Fn(&str) -> bool) -> String {
    if let Some(free) = candidates.iter().find(|name| !taken(name)) {
        return free.clone();
    }
    let last = candidates.last().cloned().unwrap_or_default();
    let mut number = 2u32;
    loop {
        let name = format!("{last}_{number}");
        if !taken(&name) {
            return name;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_put_in_singular_and_plural() {
        for (one, many) in [
            ("order", "orders"),
            ("order_item", "order_items"),
            ("address", "addresses"),
            ("category", "categories"),
            ("status", "statuses"),
            ("house", "houses"),
            ("box", "boxes"),
            ("day", "days"),
            ("person", "people"),
            ("item_tax", "item_taxes"),
            ("purchase", "purchases"),
        ] {
            assert_eq!(plural(one), many);
            assert_eq!(singular(many), one);
            assert_eq!(plural(many), many);
            assert_eq!(singular(one), one);
        }
    }

    #[test]
    fn names_take_a_common_form() {
        assert_eq!(snake("OrderItems"), "order_items");
        assert_eq!(snake("SKUPrices"), "sku_prices");
        assert_eq!(snake("my table"), "my_table");
        assert_eq!(referent("customer_id").as_deref(), Some("customer"));
        assert_eq!(referent("BillingAddressID").as_deref(), Some("billing_address"));
        assert_eq!(referent("created_by"), None);
        assert_eq!(entity("Zeile ü"), "zeile");
        assert_eq!(entity("2024"), "t_2024");
        assert_eq!(unique(&["a".into(), "b".into()], |name| name == "a"), "b");
        assert_eq!(unique(&["a".into()], |name| matches!(name, "a" | "a_2")), "a_3");
    }
}
