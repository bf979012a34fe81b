//! Multi-part MIME archives, as cloud-init and nodeadm read them.

use super::UserDataError;

/// Content type of a shell script.
pub const SHELL_SCRIPT: &str = "text/x-shellscript; charset=\"us-ascii\"";
/// Content type of a nodeadm configuration.
pub const NODE_CONFIG: &str = "application/node.eks.aws";
const BOUNDARY: &str = "//";

/// One part: its header lines and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Header lines without the line ends.
    pub headers: Vec<String>,
    /// The body, untouched.
    pub body: String,
}

impl Part {
    /// A part with only a content type.
    #[must_use]
    pub fn new(content_type: &str, body: &str) -> Self {
        Self { headers: vec![format!("Content-Type: {content_type}")], body: body.to_owned() }
    }
}

/// True for text that is an archive itself.
#[must_use]
pub fn is_archive(text: &str) -> bool {
    let text = text.trim_start();
    text.starts_with("MIME-Version:") || text.starts_with("Content-Type:")
}

/// Writes an archive.
#[must_use]
pub fn write(parts: &[Part]) -> String {
    let mut text =
        format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\n\n");
    for part in parts {
        text.push_str(&format!("--{BOUNDARY}\n{}\n\n{}\n", part.headers.join("\n"), part.body));
    }
    text.push_str(&format!("--{BOUNDARY}--\n"));
    text.replace('\r', "")
}

/// Reads an archive's parts; a missing final delimiter ends the last part at the text's end.
///
/// # Errors
/// When the text has no multi-part header or no boundary.
pub fn read(text: &str) -> Result<Vec<Part>, UserDataError> {
    let text = text.trim_start().replace("\r\n", "\n");
    let (head, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let head = head.replace("\n ", " ").replace("\n\t", " ");
    let content_type = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
        })
        .unwrap_or_default();
    if !content_type.to_ascii_lowercase().starts_with("multipart/") {
        return Err(UserDataError::Custom(format!(
            "parsing custom user data input, expected a multipart/* content type, found {content_type:?}"
        )));
    }
    let boundary = content_type
        .split(';')
        .filter_map(|p| p.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("boundary"))
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .filter(|b| !b.is_empty())
        .ok_or_else(|| {
            UserDataError::Custom(
                "parsing custom user data input, the multipart content type has no boundary"
                    .to_owned(),
            )
        })?;
    Ok(split(rest, &boundary))
}

fn split(text: &str, boundary: &str) -> Vec<Part> {
    let (open, close) = (format!("--{boundary}"), format!("--{boundary}--"));
    let mut parts = Vec::new();
    let mut lines: Option<Vec<&str>> = None;
    for line in text.split('\n') {
        let trimmed = line.trim_end();
        if trimmed == open || trimmed == close {
            parts.extend(lines.take().map(part));
            if trimmed == close {
                return parts;
            }
            lines = Some(Vec::new());
        } else if let Some(lines) = &mut lines {
            lines.push(line);
        }
    }
    let rest = lines.filter(|l| l.iter().any(|line| !line.trim().is_empty()));
    parts.extend(rest.map(part));
    parts
}

fn part(lines: Vec<&str>) -> Part {
    let blank = lines.iter().position(|l| l.trim().is_empty()).unwrap_or(lines.len());
    Part {
        headers: lines[..blank].iter().map(|l| (*l).to_owned()).collect(),
        body: lines.get(blank + 1..).unwrap_or_default().join("\n"),
    }
}
