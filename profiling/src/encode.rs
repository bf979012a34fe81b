//! A CPU profile in pprof's format, `profile.proto` of <https://github.com/google/pprof>.

use std::collections::HashMap;
use std::time::SystemTime;

use pprof::{Frames, Symbol};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// A number that counts things in memory.
fn number<T>(count: usize) -> T
where
    T: TryFrom<usize> + Default,
{
    T::try_from(count).unwrap_or_default()
}

/// A profile that grows.
#[derive(Default)]
struct Builder {
    profile: Profile,
    texts: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    /// By what the location shows: the functions that were inlined into each other, innermost first.
    locations: HashMap<Vec<(u64, i64)>, u64>,
}

impl Builder {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(at) = self.texts.get(text) {
            return *at;
        }
        let at = number(self.profile.string_table.len());
        self.profile.string_table.push(text.to_owned());
        self.texts.insert(text.to_owned(), at);
        at
    }

    fn kind(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { kind: self.text(kind), unit: self.text(unit) }
    }

    fn function(&mut self, symbol: &Symbol) -> u64 {
        let (name, filename) = (self.text(&symbol.name()), self.text(&symbol.filename()));
        let system_name = self.text(&symbol.sys_name());
        let functions = &mut self.profile.function;
        *self.functions.entry((system_name, filename)).or_insert_with(|| {
            let id = number(functions.len() + 1);
            functions.push(Function { id, name, system_name, filename });
            id
        })
    }

    fn location(&mut self, symbols: &[Symbol]) -> u64 {
        let lines: Vec<(u64, i64)> =
            symbols.iter().map(|s| (self.function(s), i64::from(s.lineno()))).collect();
        let locations = &mut self.profile.location;
        *self.locations.entry(lines.clone()).or_insert_with(|| {
            let id = number(locations.len() + 1);
            let line = |(function_id, line)| Line { function_id, line };
            locations.push(Location { id, line: lines.into_iter().map(line).collect() });
            id
        })
    }
}

/// Stacks that were seen so often, sampled so many times per second for so many seconds.
pub(super) fn profile(
    stacks: &HashMap<Frames, isize>,
    started: SystemTime,
    frequency: i32,
    seconds: u64,
) -> Vec<u8> {
    let period = 1_000_000_000 / i64::from(frequency.max(1));
    let mut builder = Builder::default();
    // The first text has to be empty.
    builder.text("");
    let (samples, cpu) = (builder.kind("samples", "count"), builder.kind("cpu", "nanoseconds"));
    let thread = builder.text("thread");
    for (frames, count) in stacks {
        let location_id = frames.frames.iter().map(|symbols| builder.location(symbols)).collect();
        let count = i64::try_from(*count).unwrap_or_default();
        let label = Label { key: thread, str: builder.text(&frames.thread_name_or_id()) };
        let value = vec![count, count * period];
        builder.profile.sample.push(Sample { location_id, value, label: vec![label] });
    }
    let started = started.duration_since(SystemTime::UNIX_EPOCH);
    Profile {
        sample_type: vec![samples, cpu],
        period_type: Some(cpu),
        period,
        time_nanos: started.ok().and_then(|t| t.as_nanos().try_into().ok()).unwrap_or_default(),
        duration_nanos: i64::try_from(seconds).unwrap_or_default() * 1_000_000_000,
        ..builder.profile
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn symbol(name: &str, line: u32) -> Symbol {
        Symbol {
            name: Some(name.as_bytes().to_vec()),
            addr: None,
            lineno: Some(line),
            filename: Some("src/a.rs".into()),
        }
    }

    fn frames(stack: &[(&str, u32)]) -> Frames {
        Frames {
            frames: stack.iter().map(|(name, line)| vec![symbol(name, *line)]).collect(),
            thread_name: "worker".to_owned(),
            thread_id: 1,
            sample_timestamp: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn stacks_are_kept_with_their_names_and_times() {
        let data = [(frames(&[("solve", 7), ("main", 1)]), 3), (frames(&[("main", 1)]), 2)];
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let bytes = profile(&data.into_iter().collect(), started, 100, 1);
        let read = Profile::decode(&bytes[..]).unwrap();
        let text = |at: i64| read.string_table[usize::try_from(at).unwrap()].as_str();
        assert_eq!(read.string_table[0], "");
        let types: Vec<_> = read.sample_type.iter().map(|t| (text(t.kind), text(t.unit))).collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        let mut stacks: Vec<(Vec<&str>, Vec<i64>)> = read
            .sample
            .iter()
            .map(|sample| {
                let name = |id: &u64| {
                    let location = read.location.iter().find(|l| l.id == *id).unwrap();
                    let function = location.line[0].function_id;
                    text(read.function.iter().find(|f| f.id == function).unwrap().name)
                };
                (sample.location_id.iter().map(name).collect(), sample.value.clone())
            })
            .collect();
        stacks.sort();
        let expected =
            [(vec!["main"], vec![2, 20_000_000]), (vec!["solve", "main"], vec![3, 30_000_000])];
        assert_eq!(stacks, expected);
        assert_eq!((read.time_nanos, read.duration_nanos), (5_000_000_000, 1_000_000_000));
        assert_eq!((read.function.len(), read.location.len()), (2, 2), "each once");
    }
}
