//! Schedules of disruption budgets, read as Kubernetes reads those of CronJobs: the standard parser
//! of robfig/cron, five fields or a descriptor, in UTC.
//!
//! Written here because the crates that read cron expressions follow other dialects: they take
//! seconds, `L`, `W`, `#` and a Sunday of 7, and they read `5/15`, `?` and a day of the month
//! beside a day of the week in other ways.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A schedule without a hit within this many years (such as 31 February) never fires.
const HORIZON_YEARS: i16 = 5;

/// Why a schedule cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// There are more or fewer than five fields.
    #[error(
        "expected exactly 5 fields (minute, hour, day of month, month, day of week), found {0}"
    )]
    Fields(usize),
    /// A name that begins with `@` and is none of the known ones.
    #[error(
        "unrecognized descriptor {0:?}, expected @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly or @every DURATION"
    )]
    Descriptor(String),
    /// One of the fields.
    #[error("{field} {text:?}: {problem}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// The part of it that is wrong.
        text: String,
        /// What was expected.
        problem: String,
    },
}

/// When a window begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Every(SignedDuration),
    Fields { minute: Set, hour: Set, day: Set, month: Set, weekday: Set },
}

/// The values that a field allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    bits: u64,
    /// Written as `*` or `?`, so that it does not restrict.
    star: bool,
}

impl Set {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|v| self.bits.checked_shr(v).unwrap_or(0) & 1 == 1)
    }
}

/// A field's name, bounds, and the names of its values from the least on.
struct Bounds {
    name: &'static str,
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { name: "minute", min: 0, max: 59, names: &[] };
const HOUR: Bounds = Bounds { name: "hour", min: 0, max: 23, names: &[] };
const DAY: Bounds = Bounds { name: "day of month", min: 1, max: 31, names: &[] };
const MONTH: Bounds = Bounds {
    name: "month",
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
// As in robfig/cron, which Karpenter uses: Sunday is 0 only, and 7 is refused.
const WEEKDAY: Bounds = Bounds {
    name: "day of week",
    min: 0,
    max: 6,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

impl std::str::FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if text.starts_with('@') {
            return descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(ScheduleError::Fields(fields.len()));
        };
        Ok(Self(Kind::Fields {
            minute: MINUTE.parse(minute)?,
            hour: HOUR.parse(hour)?,
            day: DAY.parse(day)?,
            month: MONTH.parse(month)?,
            weekday: WEEKDAY.parse(weekday)?,
        }))
    }
}

fn descriptor(text: &str) -> Result<Schedule, ScheduleError> {
    let same = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let unknown = || ScheduleError::Descriptor(text.to_owned());
            let length = text.strip_prefix("@every ").ok_or_else(unknown)?;
            let length = crate::duration::parse_go(length).map_err(|_| unknown())?;
            // Less than a second counts as one, parts of a second are dropped.
            let seconds = i64::try_from(length.as_secs()).map_err(|_| unknown())?.max(1);
            return Ok(Schedule(Kind::Every(SignedDuration::from_secs(seconds))));
        }
    };
    same.parse()
}

impl Bounds {
    fn parse(&self, text: &str) -> Result<Set, ScheduleError> {
        let mut set = Set { bits: 0, star: false };
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let one = self.range(part).map_err(|problem| ScheduleError::Field {
                field: self.name,
                text: part.to_owned(),
                problem,
            })?;
            set.bits |= one.bits;
            set.star |= one.star;
        }
        Ok(set)
    }

    /// `*`, `?`, `N`, `N-M`, each with `/STEP`; `N/STEP` runs to the field's end.
    fn range(&self, text: &str) -> Result<Set, String> {
        let mut halves = text.split('/');
        let ends: Vec<&str> = halves.next().unwrap_or_default().split('-').collect();
        let step = halves.next();
        if halves.next().is_some() {
            return Err("expected at most one slash".to_owned());
        }
        let mut star = matches!(ends.first(), Some(&("*" | "?")));
        let (start, mut end) = match ends[..] {
            _ if star => (self.min, self.max),
            [only] => (self.value(only)?, self.value(only)?),
            [low, high] => (self.value(low)?, self.value(high)?),
            _ => return Err("expected at most one hyphen".to_owned()),
        };
        let step = match step {
            None => 1,
            Some(step) => {
                // `5/15` means every 15 from 5 on, as robfig/cron reads it.
                if ends.len() == 1 {
                    end = self.max;
                }
                number(step)?
            }
        };
        // A step restricts: the day then counts beside the other day field.
        star &= step <= 1;
        if step == 0 {
            return Err("expected a step of at least 1".to_owned());
        }
        if start < self.min || end > self.max {
            return Err(format!("expected values from {} to {}", self.min, self.max));
        }
        if start > end {
            return Err(format!("expected a range that rises, found {start} to {end}"));
        }
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        let bits = (start..=end).step_by(step).fold(0, |bits, value| bits | (1_u64 << value));
        Ok(Set { bits, star })
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_lowercase();
        if let Some(at) = self.names.iter().position(|n| *n == lower) {
            return Ok(self.min + u32::try_from(at).unwrap_or_default());
        }
        number(text).map_err(|problem| match (self.names.first(), self.names.last()) {
            (Some(first), Some(last)) => format!("{problem}, names go from {first} to {last}"),
            _ => problem,
        })
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("expected a number, found {text:?}"))
}

impl Schedule {
    /// The first time strictly after a moment at which the schedule fires, in UTC; `None` when it
    /// never does.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match self.0 {
            Kind::Every(length) => {
                Timestamp::from_second(after.as_second()).ok()?.checked_add(length).ok()
            }
            Kind::Fields { minute, hour, day, month, weekday } => {
                let start = Timestamp::from_second((after.as_second().div_euclid(60) + 1) * 60);
                let start: DateTime = start.ok()?.to_zoned(TimeZone::UTC).datetime();
                let last_year = start.year().checked_add(HORIZON_YEARS)?;
                // Day by day rather than minute by minute: a yearly schedule would need half a
                // million steps.
                let (mut date, mut earliest) = (start.date(), (start.hour(), start.minute()));
                while date.year() <= last_year {
                    let in_month = month.has(date.month());
                    if in_month
                        && day_matches(day, weekday, date)
                        && let Some((hour, minute)) = first_time(hour, minute, earliest)
                    {
                        let found = date.at(hour, minute, 0, 0);
                        return Some(found.to_zoned(TimeZone::UTC).ok()?.timestamp());
                    }
                    date = if in_month { date } else { date.last_of_month() }.tomorrow().ok()?;
                    earliest = (0, 0);
                }
                None
            }
        }
    }
}

/// The first hour and minute of a day, not before `earliest`.
fn first_time(hours: Set, minutes: Set, earliest: (i8, i8)) -> Option<(i8, i8)> {
    let mut times = (earliest.0..24).filter(|h| hours.has(*h)).flat_map(|hour| {
        let from = if hour == earliest.0 { earliest.1 } else { 0 };
        (from..60).filter(|m| minutes.has(*m)).map(move |minute| (hour, minute))
    });
    times.next()
}

/// Where both day fields restrict, either is enough: cron's old rule.
fn day_matches(day: Set, weekday: Set, date: Date) -> bool {
    let by_day = day.has(date.day());
    let by_weekday = weekday.has(date.weekday().to_sunday_zero_offset());
    if day.star || weekday.star { by_day && by_weekday } else { by_day || by_weekday }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let schedule: Schedule = schedule.parse().unwrap();
        let found = schedule.next_after(after.parse().unwrap());
        found.map_or_else(|| "never".to_owned(), |t| t.to_string())
    }

    #[test]
    fn fields_and_descriptors_mean_what_they_mean_for_cron_jobs() {
        // 2026-11-24 is a Tuesday.
        for (schedule, after, wanted) in [
            ("@midnight", "2026-11-24T10:00:00Z", "2026-11-25T00:00:00Z"),
            ("@daily", "2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z"),
            ("@hourly", "2026-11-24T10:59:59Z", "2026-11-24T11:00:00Z"),
            ("@weekly", "2026-11-24T10:00:00Z", "2026-11-29T00:00:00Z"),
            ("@monthly", "2026-11-24T10:00:00Z", "2026-12-01T00:00:00Z"),
            ("@yearly", "2026-11-24T10:00:00Z", "2027-01-01T00:00:00Z"),
            ("@annually", "2026-11-24T10:00:00Z", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", "2026-11-24T10:00:00.5Z", "2026-11-24T11:30:00Z"),
            ("@every 10ms", "2026-11-24T10:00:00Z", "2026-11-24T10:00:01Z"),
            ("5/15 * * * *", "2026-11-24T10:05:00Z", "2026-11-24T10:20:00Z"),
            ("5/15 * * * *", "2026-11-24T10:50:01Z", "2026-11-24T11:05:00Z"),
            ("0 9 ? * MON-Fri", "2026-11-27T09:00:00Z", "2026-11-30T09:00:00Z"),
            ("0 0 * feb *", "2026-11-24T10:00:00Z", "2027-02-01T00:00:00Z"),
            ("0 0 29 2 *", "2026-11-24T10:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 22-23,4 * * *", "2026-11-24T23:00:00Z", "2026-11-25T04:00:00Z"),
            ("+7,, 3 * * *", "2026-11-24T10:00:00Z", "2026-11-25T03:07:00Z"),
        ] {
            assert_eq!(next(schedule, after), wanted, "{schedule} after {after}");
        }
    }

    #[test]
    fn either_day_field_is_enough_where_both_restrict() {
        assert_eq!(next("0 0 13 * fri", "2026-11-24T10:00:00Z"), "2026-11-27T00:00:00Z");
        assert_eq!(next("0 0 25 * fri", "2026-11-24T10:00:00Z"), "2026-11-25T00:00:00Z");
        assert_eq!(next("0 0 */20 * fri", "2026-11-28T10:00:00Z"), "2026-12-01T00:00:00Z");
        assert_eq!(next("0 0 13 * ?", "2026-11-24T10:00:00Z"), "2026-12-13T00:00:00Z");
        assert_eq!(next("0 0 */1 * fri", "2026-11-24T10:00:00Z"), "2026-11-27T00:00:00Z");
    }

    #[test]
    fn a_day_that_never_comes_never_fires() {
        assert_eq!(next("0 0 31 2 *", "2026-11-24T10:00:00Z"), "never");
        assert_eq!(next(", * * * *", "2026-11-24T10:00:00Z"), "never");
    }

    #[test]
    fn what_cron_jobs_refuse_is_refused_with_the_reason() {
        for (schedule, part) in [
            ("", "found 0"),
            ("0 0 * * * *", "found 6"),
            ("TZ=Asia/Tokyo 0 9 * * *", "found 6"),
            ("* * * *", "found 4"),
            ("0 0 L * *", "expected a number, found \"L\""),
            ("0 0 15W * *", "day of month \"15W\""),
            ("0 0 * * 5#2", "day of week \"5#2\""),
            ("0 0 * * 7", "values from 0 to 6"),
            ("0 0 * * fri-mon", "a range that rises"),
            ("60 * * * *", "minute \"60\": expected values from 0 to 59"),
            ("*/0 * * * *", "at least 1"),
            ("1-2-3 * * * *", "at most one hyphen"),
            ("1/2/3 * * * *", "at most one slash"),
            ("-5 * * * *", "expected a number"),
            ("@midnight x", "unrecognized descriptor"),
            ("@Daily", "unrecognized descriptor"),
            ("@every", "unrecognized descriptor"),
            ("@every day", "unrecognized descriptor"),
        ] {
            let error = schedule.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains(part), "{schedule}: {error}");
        }
    }
}
