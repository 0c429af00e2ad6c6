//! The steps that a subscription has to take before it only waits for live events.

use std::collections::VecDeque;

use super::catch_up::Step;

/// Steps in order.
#[derive(Default)]
pub(super) struct Plan(
    #[expect(
        clippy::box_collection,
        reason = "a live connection has none, and there are many of them"
    )]
    Option<Box<VecDeque<Step>>>,
);

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.front().is_none()
    }

    pub(super) fn front(&self) -> Option<&Step> {
        self.0.as_ref()?.front()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Step> {
        self.0.iter().flat_map(|steps| steps.iter())
    }

    pub(super) fn push_front(&mut self, step: Step) {
        self.0.get_or_insert_default().push_front(step);
    }

    pub(super) fn push_back(&mut self, step: Step) {
        self.0.get_or_insert_default().push_back(step);
    }

    pub(super) fn pop_front(&mut self) -> Option<Step> {
        self.0.as_mut()?.pop_front()
    }

    /// Keeps only the steps that are `wanted`, which may change them.
    pub(super) fn retain(&mut self, wanted: impl FnMut(&mut Step) -> bool) {
        if let Some(steps) = &mut self.0 {
            steps.retain_mut(wanted);
        }
    }

    /// Frees the memory if no steps are left.
    pub(super) fn free_if_empty(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}
