//! How many workers the load wants, within what memory allows.

use super::Fleet;
use super::measured::Sample;
use super::messages::Action;
use super::worker::Time;

impl Fleet {
    #[expect(clippy::unused_self, reason = "nobody decides anything by it yet")]
    pub(super) fn measured(&mut self, _now: Time, _sample: &Sample, _actions: &mut Vec<Action>) {}
}
