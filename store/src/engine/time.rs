//! Moments as the store keeps them: microseconds since 1970 in UTC, which every engine sorts and subtracts alike.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns this moment in microseconds since 1970.
pub(crate) fn now() -> i64 {
    micros(SystemTime::now())
}

/// Converts a moment to microseconds since 1970; moments before 1970 become 0.
pub(crate) fn micros(moment: SystemTime) -> i64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_micros() as i64)
}

/// Converts microseconds since 1970 to a moment.
pub(crate) fn moment(micros: i64) -> SystemTime {
    UNIX_EPOCH + std::time::Duration::from_micros(micros.max(0) as u64)
}

/// A moment in words, to the second: `2026-11-03 09:05:07Z`.
///
/// The civil date comes from the day count by Howard Hinnant's method (*chrono-compatible low-level date
/// algorithms*): years start in March, so that the leap day comes last, and repeat every 400 years of 146,097 days.
pub(crate) fn words(micros: i64) -> String {
    let seconds = micros.div_euclid(1_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let since_march_0000 = days + 719_468;
    let (era, day_of_era) = (since_march_0000.div_euclid(146_097), since_march_0000.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let month = if months_since_march < 10 { months_since_march + 3 } else { months_since_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn civil_dates() {
        assert_eq!(words(0), "1970-01-01 00:00:00Z");
        assert_eq!(words(951_782_399_999_999), "2000-02-28 23:59:59Z");
        assert_eq!(words(951_782_400_000_000), "2000-02-29 00:00:00Z");
        assert_eq!(words(1_793_696_707_000_000), "2026-11-03 09:05:07Z");
        assert_eq!(words(4_107_542_400_000_000), "2100-03-01 00:00:00Z");
    }
}
