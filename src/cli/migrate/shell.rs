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

/// A word as a shell reads it, whatever it holds.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
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
    use super::{quoted, words};

    #[test]
    fn a_quoted_word_is_read_back_as_it_was() {
        assert_eq!(quoted("web-1.example/x"), "web-1.example/x");
        for word in ["", "two words", "it's", "$(rm)", "a;b"] {
            let read = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(read.stdout).unwrap(), word);
        }
    }

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
