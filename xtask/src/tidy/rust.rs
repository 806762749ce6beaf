//! Rust source without its comments and literals: enough of a lexer to say whether a word is code.

/// The source with comments, strings and character literals turned into spaces; lines stay.
pub(super) fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + skipped(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if end == at {
            code.push(char::from(bytes[at]));
            at += 1;
        } else {
            code.extend(bytes[at..end].iter().map(|byte| if *byte == b'\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// The length of the comment or literal that begins here; 0 when none does.
fn skipped(bytes: &[u8], before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match bytes {
        [b'/', b'/', ..] => bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()),
        [b'/', b'*', ..] => block_comment(bytes),
        [b'"', ..] => 1 + string(&bytes[1..], b'"'),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string(bytes, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !in_word => raw_string(bytes, 2),
        // 'x', '\n', but not the lifetime 'x
        [b'\'', b'\\', ..] => 1 + string(&bytes[1..], b'\''),
        [b'\'', rest @ ..] => character(rest),
        _ => 0,
    }
}

/// Block comments nest (Rust reference, "Comments").
fn block_comment(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Up to and with the closing quote.
fn string(bytes: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `r"..."`, `r#"..."#`; 0 for a raw identifier (`r#type`).
fn raw_string(bytes: &[u8], prefix: usize) -> usize {
    let hashes = bytes[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let begin = prefix + hashes + 1;
    if bytes.get(begin - 1) != Some(&b'"') {
        return 0;
    }
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let end = bytes[begin..].windows(close.len()).position(|window| window == close);
    end.map_or(bytes.len(), |end| begin + end + close.len())
}

/// After the opening quote: a character of 1 to 4 bytes and the closing quote.
fn character(rest: &[u8]) -> usize {
    let length = match rest.first() {
        Some(0xf0..) => 4,
        Some(0xe0..) => 3,
        Some(0xc0..) => 2,
        _ => 1,
    };
    if rest.get(length) == Some(&b'\'') { length + 2 } else { 0 }
}

/// The lines (from 1) that hold `word` as a whole word.
pub(super) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let holds = |line: &str| line.split(|c| !is_word(c)).any(|found| found == word);
    code.lines().enumerate().filter(|(_, line)| holds(line)).map(|(index, _)| index + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, expected: &str) {
        let code = code_only(source);
        assert_eq!(code.lines().count(), source.lines().count(), "{source}");
        assert_eq!(code.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{source}");
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        check("a // unsafe\nb", "a b");
        check("a /* x /* y */ unsafe */ b", "a b");
        check(r#"a "unsafe \" // " b"#, "a b");
        check(r##"a r#"un"safe"# b r"x\" c br"x" d"##, "a b c d");
        check("fn f<'a>(x: &'a str) { '\\'' ; 'u' ; 'é' }", "fn f<'a>(x: &'a str) { ; ; }");
        check("r#type = 1; our\"x\"", "r#type = 1; our");
        check("\"unterminated", "");
        check("/* unterminated", "");
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(lines_with_word("unsafe_code\nx unsafe{}\n", "unsafe"), [2]);
    }
}
