//! Multi-part MIME archives, as cloud-init and nodeadm read them.

use super::UserDataError;

/// Content type of a shell script.
pub const SHELL_SCRIPT: &str = "text/x-shellscript; charset=\"us-ascii\"";
/// Content type of a nodeadm configuration.
pub const NODE_CONFIG: &str = "application/node.eks.aws";
// As short as Karpenter's; EC2 counts each byte of user data.
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

    /// The content type without its parameters, in lower case.
    #[must_use]
    pub fn content_type(&self) -> String {
        let value = header(self.headers.iter().map(String::as_str), "content-type");
        let kind = value.unwrap_or_default().split(';').next().unwrap_or_default();
        kind.trim().to_ascii_lowercase()
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
    // A shell does not run scripts with carriage returns.
    text.replace('\r', "")
}

/// Whether an archive must end with its closing delimiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// cloud-init's reader wants it.
    Required,
    /// nodeadm's reader takes the end of the text.
    Optional,
}

fn invalid(what: &str) -> UserDataError {
    UserDataError::Custom(format!("parsing custom user data input, {what}"))
}

/// The value of a header.
fn header<'a>(lines: impl Iterator<Item = &'a str>, wanted: &str) -> Option<&'a str> {
    lines
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.trim().eq_ignore_ascii_case(wanted).then_some(value.trim()))
}

/// Reads an archive's parts.
///
/// # Errors
/// When the text has no multi-part header or no boundary, or its parts do not follow from that.
pub fn read(text: &str, ending: Ending) -> Result<Vec<Part>, UserDataError> {
    let text = text.trim_start().replace("\r\n", "\n");
    let (head, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    // Without an empty line after the headers the first part would pass for one of them.
    if let Some(bad) = head.lines().find(|line| !is_header(line)) {
        return Err(invalid(&format!(
            "malformed MIME header, missing colon: {bad:?}, expected an empty line before the first part"
        )));
    }
    let head = head.replace("\n ", " ").replace("\n\t", " ");
    let content_type = header(head.lines(), "content-type").unwrap_or_default();
    if !content_type.to_ascii_lowercase().starts_with("multipart/") {
        return Err(invalid(&format!(
            "expected a multipart/* content type, found {content_type:?}"
        )));
    }
    let boundary = content_type
        .split(';')
        .filter_map(|p| p.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("boundary"))
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .filter(|b| !b.is_empty())
        .ok_or_else(|| invalid("the multipart content type has no boundary"))?;
    split(rest, &boundary, ending)
}

fn split(text: &str, boundary: &str, ending: Ending) -> Result<Vec<Part>, UserDataError> {
    let (open, close) = (format!("--{boundary}"), format!("--{boundary}--"));
    let mut parts = Vec::new();
    let mut lines: Option<Vec<&str>> = None;
    for line in text.split('\n') {
        let trimmed = line.trim_end();
        if trimmed == open || trimmed == close {
            if let Some(lines) = lines.take() {
                parts.push(part(lines)?);
            }
            if trimmed == close {
                return Ok(parts);
            }
            lines = Some(Vec::new());
        } else if let Some(lines) = &mut lines {
            lines.push(line);
        }
    }
    if ending == Ending::Required || (lines.is_none() && parts.is_empty()) {
        let wanted = if lines.is_some() { &close } else { &open };
        return Err(invalid(&format!("the archive has no line {wanted}")));
    }
    if let Some(lines) = lines.filter(|l| l.iter().any(|line| !line.trim().is_empty())) {
        parts.push(part(lines)?);
    }
    Ok(parts)
}

/// A header's line, or the continuation of one.
fn is_header(line: &str) -> bool {
    line.starts_with([' ', '\t'])
        || line.split_once(':').is_some_and(|(name, _)| !name.contains(' '))
}

fn part(lines: Vec<&str>) -> Result<Part, UserDataError> {
    let blank = lines.iter().position(|l| l.trim().is_empty()).unwrap_or(lines.len());
    if let Some(bad) = lines[..blank].iter().find(|line| !is_header(line)) {
        return Err(invalid(&format!(
            "expected a header of a part or an empty line, found {bad:?}"
        )));
    }
    Ok(Part {
        headers: lines[..blank].iter().map(|l| (*l).to_owned()).collect(),
        body: lines.get(blank + 1..).unwrap_or_default().join("\n"),
    })
}
