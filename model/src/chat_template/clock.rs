//! The date that a chat template may write, and a way to hold it still.

use crate::{Error, Result};
use std::ffi::CString;
use std::fmt;
use std::str::FromStr;

/// A moment of a local clock, to the second, such as `2026-01-31T08:05:00`.
///
/// It has no time zone: kept as text and read on another machine, it shows the same date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the clock showed 1970-01-01T00:00:00.
    seconds: i64,
}

impl Moment {
    /// The local time.
    pub fn now() -> Self {
        // SAFETY: `time` accepts a null pointer; `broken_down` is plain data that `localtime_r` fills.
        let (now, broken_down) = unsafe {
            let now = libc::time(std::ptr::null_mut());
            let mut broken_down: libc::tm = std::mem::zeroed();
            libc::localtime_r(&raw const now, &raw mut broken_down);
            (now, broken_down)
        };
        Self { seconds: now + broken_down.tm_gmtoff }
    }

    /// The moment in the C library's `strftime` format; at most 255 bytes, or nothing. As in Python, a moment without a
    /// time zone writes nothing for `%z` and `%Z`.
    ///
    /// # Errors
    /// A clause if the format has a zero byte.
    pub(super) fn format(self, format: &str) -> std::result::Result<String, &'static str> {
        let format = CString::new(without_zone(format)).map_err(|_| "strftime_now: a format with a zero byte")?;
        let broken_down = self.broken_down();
        let mut text = [0u8; 256];
        // SAFETY: `strftime` reads a string that ends and writes at most `text.len()` bytes; it returns how many.
        let len =
            unsafe { libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), &raw const broken_down) };
        Ok(String::from_utf8_lossy(&text[..len]).into_owned())
    }

    fn broken_down(self) -> libc::tm {
        // SAFETY: `broken_down` is plain data that `gmtime_r` fills.
        unsafe {
            let mut broken_down: libc::tm = std::mem::zeroed();
            libc::gmtime_r(&raw const self.seconds, &raw mut broken_down);
            broken_down
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.format("%Y-%m-%dT%H:%M:%S").unwrap_or_default())
    }
}

impl FromStr for Moment {
    type Err = Error;

    /// Reads what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    /// If the text is not a date and time in this form.
    fn from_str(text: &str) -> Result<Self> {
        let numbers: Vec<i32> = text.split(['-', 'T', ':']).filter_map(|number| number.parse().ok()).collect();
        if let [year, month, day, hour, minute, second] = numbers[..] {
            // SAFETY: `broken_down` is plain data; `timegm` reads its numbers, whatever they are.
            let seconds = unsafe {
                let mut broken_down: libc::tm = std::mem::zeroed();
                broken_down.tm_year = year.saturating_sub(1900);
                broken_down.tm_mon = month.saturating_sub(1);
                (broken_down.tm_mday, broken_down.tm_hour) = (day, hour);
                (broken_down.tm_min, broken_down.tm_sec) = (minute, second);
                libc::timegm(&raw mut broken_down)
            };
            let moment = Self { seconds };
            if moment.to_string() == text {
                return Ok(moment);
            }
        }
        Err(Error::input(format!("`{text}` is not a moment such as 2026-01-31T08:05:00")))
    }
}

/// A format without its directives for the time zone.
fn without_zone(format: &str) -> String {
    let mut result = String::with_capacity(format.len());
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        match (character, rest.clone().next()) {
            ('%', Some('z' | 'Z')) => drop(rest.next()),
            ('%', Some(other)) => {
                rest.next();
                result.extend(['%', other]);
            }
            _ => result.push(character),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_comes_back_from_its_text() {
        for text in ["2025-12-31T23:59:50", "2024-02-29T00:00:00", "1970-01-01T00:00:01"] {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), text);
        }
        let now = Moment::now();
        assert_eq!(now.to_string().parse::<Moment>().unwrap(), now);
        for text in ["", "today", "2025-02-30T00:00:00", "2025-1-1T0:0:0", "2025-12-31", "99999999999-1-1T0:0:0"] {
            let error = text.parse::<Moment>().unwrap_err();
            assert!(error.is_input() && error.to_string().contains("is not a moment"), "{error}");
        }
    }

    #[test]
    fn a_moment_has_a_weekday_and_no_zone() {
        let moment: Moment = "2025-12-31T23:59:50".parse().unwrap();
        assert_eq!(
            moment.format("%d %b %Y, %A, %j, %H%z %Z|100%%z").unwrap(),
            "31 Dec 2025, Wednesday, 365, 23 |100%z"
        );
        assert!(moment.format("a\0b").is_err());
    }
}
