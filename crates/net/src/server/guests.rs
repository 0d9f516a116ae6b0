//! A bound on connections that have not shown a member's certificate.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

/// In all. A handshake takes a few milliseconds, so members need few of these places.
const GUESTS_MAX: usize = 256;
/// From one address, so that one stranger cannot take all the places.
const GUESTS_PER_ADDRESS_MAX: usize = 32;

/// Who is in the door.
#[derive(Clone, Debug, Default)]
pub struct Guests(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A place in the door, given back when dropped.
#[derive(Debug)]
pub struct Guest {
    guests: Guests,
    address: IpAddr,
}

impl Guests {
    /// A place for a connection from `address`, if there is one.
    pub fn admit(&self, address: IpAddr) -> Option<Guest> {
        let mut places = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let taken: usize = places.values().sum();
        let here = places.get(&address).copied().unwrap_or(0);
        if taken >= GUESTS_MAX || here >= GUESTS_PER_ADDRESS_MAX {
            return None;
        }
        places.insert(address, here + 1);
        Some(Guest { guests: self.clone(), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut places = self.guests.0.lock().unwrap_or_else(|e| e.into_inner());
        match places.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                places.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places() {
        let guests = Guests::default();
        let greedy: IpAddr = [10, 0, 0, 1].into();
        let held: Vec<_> = (0..100).filter_map(|_| guests.admit(greedy)).collect();
        assert_eq!(held.len(), GUESTS_PER_ADDRESS_MAX);
        assert!(guests.admit([10, 0, 0, 2].into()).is_some());
        drop(held);
        assert!(guests.0.lock().unwrap().is_empty());
    }
}
