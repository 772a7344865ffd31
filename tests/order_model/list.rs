//! A list without memory of its own, so that a state is copied as one block of bytes.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Index, IndexMut};

/// A list of at most `CAPACITY` items. Bounds on the actions keep every list within it; one that grows
/// nevertheless is a mistake of the model and panics.
#[derive(Clone, Copy)]
pub struct List<T, const CAPACITY: usize> {
    length: u8,
    /// What is behind `length` is the default, so that equal lists are equal bytes.
    items: [T; CAPACITY],
}

impl<T: Copy + Default, const CAPACITY: usize> Default for List<T, CAPACITY> {
    fn default() -> Self {
        List { length: 0, items: [T::default(); CAPACITY] }
    }
}

impl<T: Copy + Default, const CAPACITY: usize> List<T, CAPACITY> {
    pub fn len(&self) -> usize {
        self.length as usize
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn as_slice(&self) -> &[T] {
        &self.items[..self.length as usize]
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.items[..self.length as usize]
    }

    pub fn push(&mut self, item: T) {
        assert!(self.len() < CAPACITY, "a list of the model has room for {CAPACITY} items only");
        self.items[self.length as usize] = item;
        self.length += 1;
    }

    pub fn extend<const OTHER: usize>(&mut self, other: &List<T, OTHER>) {
        for item in other.as_slice() {
            self.push(*item);
        }
    }

    pub fn remove(&mut self, position: usize) -> T {
        let removed = self.items[position];
        let last = self.length as usize - 1;
        for index in position..last {
            self.items[index] = self.items[index + 1];
        }
        self.items[last] = T::default();
        self.length -= 1;
        removed
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Empties the list and returns what it held.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        let mut index = 0;
        while index < self.len() {
            if keep(&self.items[index]) {
                index += 1;
            } else {
                self.remove(index);
            }
        }
    }
}

impl<T, const CAPACITY: usize> Index<usize> for List<T, CAPACITY> {
    type Output = T;
    fn index(&self, index: usize) -> &T {
        &self.items[..self.length as usize][index]
    }
}

impl<T, const CAPACITY: usize> IndexMut<usize> for List<T, CAPACITY> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.items[..self.length as usize][index]
    }
}

impl<T: Copy + Default + Hash, const CAPACITY: usize> Hash for List<T, CAPACITY> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u8(self.length);
        for index in 0..self.length as usize {
            self.items[index].hash(hasher);
        }
    }
}

impl<T: Copy + Default + PartialEq, const CAPACITY: usize> PartialEq for List<T, CAPACITY> {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl<T: Copy + Default + Eq, const CAPACITY: usize> Eq for List<T, CAPACITY> {}

impl<T: Copy + Default + fmt::Debug, const CAPACITY: usize> fmt::Debug for List<T, CAPACITY> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.as_slice().fmt(formatter)
    }
}
