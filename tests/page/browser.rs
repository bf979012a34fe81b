//! Chromium, driven by a script that asks for scenes.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A script of this folder, run by Node.js on a page. It asks for another scene by a line `scene NAME` on its
/// standard output; see `browser.mjs`.
pub struct Browser {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Browser {
    pub fn on(url: &str, script: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
        let mut process = Command::new("node")
            .arg(folder.join(script))
            .arg(url)
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node.js runs the tests of the page");
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The next scene that the script asks for; what else it prints is shown. None at its end.
    pub fn scene(&mut self) -> Option<String> {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            match line.strip_prefix("scene ") {
                Some(name) => return Some(name.to_owned()),
                None => println!("{line}"),
            }
        }
        None
    }

    /// # Panics
    /// When the script found something wrong.
    pub fn finish(mut self) {
        assert!(self.process.wait().unwrap().success(), "see the lines above");
    }
}
