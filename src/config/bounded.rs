//! Integers whose range is part of their type, so that a setting outside its range cannot be constructed.
//!
//! The crates for such numbers, such as `deranged` and `bounded-integer`, do not state the range when a value has the
//! wrong type. These types describe the range in the same words in every error.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{BLOCKING_MAX, WORKERS_MAX};

/// Rocket's setting `workers`. Its runtime panics without a thread, and with more threads than the system supports.
pub(crate) type Workers = Bounded<usize, 1, { WORKERS_MAX as u64 }>;
/// Rocket's setting `max_blocking`.
pub(crate) type MaxBlocking = Bounded<usize, 1, { BLOCKING_MAX as u64 }>;

/// A type that can hold a [`Bounded`] number.
pub trait Whole: Copy {
    /// The largest number of the type.
    const MAX: u64;

    /// Returns the number of this type, if the type can hold it.
    fn from_u64(value: u64) -> Option<Self>;

    /// Returns the same number as a `u64`.
    fn to_u64(self) -> u64;
}

macro_rules! whole {
    ($($number:ty),*) => {$(
        impl Whole for $number {
            const MAX: u64 = <$number>::MAX as u64;

            fn from_u64(value: u64) -> Option<$number> {
                value.try_into().ok()
            }

            fn to_u64(self) -> u64 {
                self as u64
            }
        }
    )*};
}

whole!(u8, u16, u32, u64, usize);

/// A number of type `T` from `MIN` to `MAX`, both inclusive. Without `MAX`, the type `T` alone limits it.
///
/// ```
/// use tidings::config::Bounded;
///
/// let secs: Bounded<u64, 1, 3_600> = Bounded::of::<15>();
/// assert_eq!(secs.get(), 15);
/// assert_eq!(Bounded::<u64, 1, 3_600>::new(0), None);
/// ```
///
/// A constant outside of the range does not compile:
///
/// ```compile_fail,E0080
/// let secs: tidings::config::Bounded<u64, 1, 3_600> = tidings::config::Bounded::of::<0>();
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bounded<T, const MIN: u64, const MAX: u64 = { u64::MAX }>(T);

impl<T: Whole, const MIN: u64, const MAX: u64> Bounded<T, MIN, MAX> {
    const MOST: u64 = if MAX < T::MAX { MAX } else { T::MAX };

    /// Returns the constant `VALUE`, whose range is checked when the program is compiled.
    pub fn of<const VALUE: u64>() -> Self {
        const { assert!(MIN <= VALUE && VALUE <= Self::MOST, "outside of the range") };
        Bounded(T::from_u64(VALUE).expect("the compiler has checked the range"))
    }

    /// Returns the number, or `None` if it is outside of the range.
    pub fn new(value: T) -> Option<Self> {
        (MIN..=Self::MOST)
            .contains(&value.to_u64())
            .then_some(Bounded(value))
    }

    /// Returns the number.
    pub fn get(self) -> T {
        self.0
    }

    /// Describes what is wrong with a number. Returns `None` if it is in the range.
    pub(crate) fn problem(value: T) -> Option<String> {
        let is_outside = Self::new(value).is_none();
        is_outside.then(|| format!("must be {}, but is outside that range", Self::accepted()))
    }

    /// Describes the numbers in the range.
    pub(crate) fn accepted() -> String {
        match Self::MOST {
            u64::MAX => format!("an integer of at least {MIN}"),
            max => format!("an integer from {MIN} to {max}"),
        }
    }
}

impl<T: fmt::Debug, const MIN: u64, const MAX: u64> fmt::Debug for Bounded<T, MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, T: Whole, const MIN: u64, const MAX: u64> Deserialize<'de> for Bounded<T, MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InRange<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

        impl<T: Whole, const MIN: u64, const MAX: u64> Visitor<'_> for InRange<T, MIN, MAX> {
            type Value = Bounded<T, MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&Bounded::<T, MIN, MAX>::accepted())
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
                T::from_u64(value)
                    .and_then(Bounded::new)
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                match value.try_into() {
                    Ok(value) => self.visit_u64(value),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
                }
            }
        }

        deserializer.deserialize_u64(InRange(PhantomData))
    }
}

/// Describes what is accepted for one of the settings of the web framework, Rocket, that have a range here.
pub(crate) fn accepted_by_framework(key: &str) -> Option<String> {
    match key {
        "workers" => Some(Workers::accepted()),
        "max_blocking" => Some(MaxBlocking::accepted()),
        _ => None,
    }
}
