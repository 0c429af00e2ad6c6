//! Values of a school for each of the last [`RATE_SECS`] seconds, in a ring buffer that costs nothing while nothing
//! happens.

use crate::config::RATE_SECS;

/// The completed seconds and the current one.
const PLACES: usize = RATE_SECS + 1;

/// Values of the last seconds.
pub(super) struct Ring {
    figures: [u32; PLACES],
    /// The second up to which the ring is filled, counted from the hub's start.
    last: u64,
    /// Whether a second without changes repeats the value of the previous one instead of 0.
    holds: bool,
}

impl Ring {
    /// Returns a ring of counts: how much happened in each second.
    pub(super) fn of_counts() -> Ring {
        Ring {
            figures: [0; PLACES],
            last: 0,
            holds: false,
        }
    }

    /// Returns a ring of levels: the value at the end of each second.
    pub(super) fn of_levels() -> Ring {
        Ring {
            holds: true,
            ..Ring::of_counts()
        }
    }

    /// Adds to the count of this second.
    pub(super) fn count(&mut self, second: u64, more: u32) {
        self.turn(second);
        let figure = &mut self.figures[place(second)];
        *figure = figure.saturating_add(more);
    }

    /// Sets the level of this second.
    pub(super) fn level(&mut self, second: u64, level: usize) {
        self.turn(second);
        self.figures[place(second)] = level.try_into().unwrap_or(u32::MAX);
    }

    /// Moves the ring to this second and overwrites the values that are too old.
    fn turn(&mut self, second: u64) {
        let passed = second.saturating_sub(self.last).min(PLACES as u64);
        let figure = match self.holds {
            true => self.figures[place(self.last)],
            false => 0,
        };
        for gone in 0..passed {
            self.figures[place(second - gone)] = figure;
        }
        self.last = self.last.max(second);
    }

    /// Returns the values of the seconds before this one, which is not complete; oldest first.
    pub(super) fn before(&mut self, second: u64) -> [u32; RATE_SECS] {
        self.turn(second);
        let present = place(second);
        std::array::from_fn(|index| self.figures[(present + 1 + index) % PLACES])
    }
}

/// Returns the index of a second's value.
fn place(second: u64) -> usize {
    usize::try_from(second % PLACES as u64).expect("below the number of places")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_forgotten_when_the_ring_has_turned() {
        let mut ring = Ring::of_counts();
        ring.count(3, 2);
        ring.count(3, 3);
        ring.count(5, 7);
        let seen = ring.before(7);
        assert_eq!(seen[RATE_SECS - 4..], [5, 0, 7, 0]);
        assert_eq!(seen.iter().sum::<u32>(), 12);
        ring.count(7, 1);
        assert_eq!(ring.before(7), seen, "a second counts when it is over");
        assert_eq!(ring.before(4 + RATE_SECS as u64).iter().sum::<u32>(), 8);
        assert_eq!(ring.before(1_000_000), [0; RATE_SECS]);
    }

    #[test]
    fn a_level_holds_until_there_is_another() {
        let mut ring = Ring::of_levels();
        ring.level(3, 2);
        ring.level(5, 4);
        ring.level(5, 3);
        assert_eq!(ring.before(8)[RATE_SECS - 6..], [0, 2, 2, 3, 3, 3]);
        assert_eq!(ring.before(1_000_000), [3; RATE_SECS]);
        ring.level(1_000_000, 0);
        assert_eq!(ring.before(1_000_001)[RATE_SECS - 2..], [3, 0]);
    }
}
