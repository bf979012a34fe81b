//! Words of a command, as a shell cuts them.

/// The words of a text; `None` where a word is only known when the command runs, or a quote stays
/// open.
///
/// Variables stay as they are written: only some options of a command need their values.
pub fn words(text: &str) -> Option<Vec<String>> {
    cut(text, true)
}

/// The words of a text that no shell reads: `<` and the like are letters.
pub fn arguments(text: &str) -> Option<Vec<String>> {
    cut(text, false)
}

fn cut(text: &str, operators: bool) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(letters.next()?),
            (None | Some('"'), '`') => return None,
            (None, ';' | '|' | '&' | '<' | '>') if operators => return None,
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let substitutes = words.iter().any(|w| w.contains("$("));
    (quote.is_none() && !substitutes).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn quotes_hold_words_together() {
        let cut = words(r#"a 'b c'  "d 'e'"=f \"g "" $H"#).unwrap();
        assert_eq!(cut, ["a", "b c", "d 'e'=f", "\"g", "", "$H"]);
    }

    #[test]
    fn commands_that_depend_on_others_have_no_words() {
        for text in ["a $(b)", "a `b`", "a 'b", "a | b", "a && b", r#""x$(y)""#] {
            assert_eq!(words(text), None, "{text}");
        }
    }
}
