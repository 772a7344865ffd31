//! Where something stops being kept as it grows: stepped, bisected, and confirmed.

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bracket {
    /// The highest value that was kept, each time that it was tried; and how often it was.
    pub kept: Option<f64>,
    pub times: u16,
    /// The lowest that was not.
    pub broken: Option<f64>,
    /// Some value was kept once, so the place is near.
    is_near: bool,
}

/// How far the two may lie apart at the end, and how often the lower one must have been kept.
#[derive(Debug, Clone, Copy)]
pub struct Care {
    pub ratio: f64,
    pub times: u16,
}

/// Tries values from `first` on. `keeps` says whether one is kept; `None` ends the search.
pub fn search(first: f64, care: Care, mut keeps: impl FnMut(f64) -> Option<bool>) -> Bracket {
    let (mut found, mut next) = (Bracket::default(), Some(first));
    while let Some(value) = next {
        let Some(is_kept) = keeps(value) else { break };
        found.add(value, is_kept);
        next = found.next(care);
    }
    found
}

impl Bracket {
    fn add(&mut self, value: f64, is_kept: bool) {
        if is_kept {
            self.times = if self.kept == Some(value) { self.times + 1 } else { 1 };
            self.kept = Some(value);
            self.is_near = true;
            return;
        }
        if self.kept == Some(value) {
            // It was kept by chance.
            (self.kept, self.times) = (None, 0);
        }
        self.broken = Some(value);
    }

    fn next(&self, care: Care) -> Option<f64> {
        match (self.kept, self.broken) {
            (Some(kept), None) => Some(kept * 2.0),
            (None, Some(broken)) if self.is_near => Some(broken / care.ratio),
            (None, Some(broken)) => Some(broken / 2.0).filter(|&value| value >= 1.0),
            (Some(kept), Some(broken)) if broken / kept > care.ratio * 1.001 => Some((kept * broken).sqrt()),
            (Some(kept), Some(_)) => Some(kept).filter(|_| self.times < care.times),
            (None, None) => None,
        }
    }
}
