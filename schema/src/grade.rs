//! The grade that a reward function, or a judge, gives: a number, or the reason why there is none.

use serde::{Deserialize, Serialize};

/// The value of one sample for one reward function, or the probability that a judge gives one comparison.
///
/// A missing value always has its reason. It is never a zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// A finite number.
    Value(f32),
    /// The grader does not apply here (TRL's `None`), or failed; the text says why.
    Missing(String),
}

impl Grade {
    /// A value; missing if the number is not finite, because a NaN must not reach a mean.
    pub fn of(value: f32) -> Self {
        if value.is_finite() { Self::Value(value) } else { Self::missing(format!("the value {value} is not finite")) }
    }

    /// 1 if correct, 0 if not.
    pub fn correct(correct: bool) -> Self {
        Self::Value(if correct { 1.0 } else { 0.0 })
    }

    /// No value, for this reason.
    pub fn missing(reason: impl Into<String>) -> Self {
        Self::Missing(reason.into())
    }

    /// The value, if there is one.
    pub fn value(&self) -> Option<f32> {
        match self {
            Self::Value(value) => Some(*value),
            Self::Missing(_) => None,
        }
    }

    /// The reason why there is no value, if there is none.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Value(_) => None,
            Self::Missing(reason) => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_finite_is_no_value() {
        assert_eq!(Grade::of(0.5), Grade::Value(0.5));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let grade = Grade::of(value);
            assert_eq!(grade.value(), None);
            assert!(grade.reason().is_some_and(|reason| reason.contains("not finite")), "{grade:?}");
        }
        assert_eq!((Grade::correct(true).value(), Grade::correct(false).value()), (Some(1.0), Some(0.0)));
        assert_eq!(Grade::correct(true).reason(), None);
    }
}
