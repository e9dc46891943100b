//! A case's configuration, read key by key; keys nobody asked for fail the case.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::case::Fallible;

/// A configuration that remembers what has been read of it.
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Config<'a> {
    /// Nothing read yet.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            read: RefCell::default(),
        }
    }

    /// The value of a key; none when the key is absent or null.
    pub fn optional<T: DeserializeOwned>(&self, key: &str) -> Fallible<Option<T>> {
        self.read.borrow_mut().insert(key.to_string());
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Ok(Some(
                serde_json::from_value(value.clone())
                    .map_err(|e| format!("config `{key}` = {value}: {e}"))?,
            )),
        }
    }

    /// The value of a key that must be there.
    pub fn required<T: DeserializeOwned>(&self, key: &str) -> Fallible<T> {
        self.optional(key)?
            .ok_or_else(|| format!("config `{key}` is missing").into())
    }

    /// The value of a key, or what the original takes in its place.
    pub fn or<T: DeserializeOwned>(&self, key: &str, default: T) -> Fallible<T> {
        Ok(self.optional(key)?.unwrap_or(default))
    }

    /// Whether the key is there, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Keys that cannot change a value once weights and inputs are given, or that the original ignores.
    pub fn without_effect(&self, keys: &[&str]) {
        self.read
            .borrow_mut()
            .extend(keys.iter().map(|key| key.to_string()));
    }

    /// A size that must agree with a tensor's.
    pub fn expect(&self, key: &str, found: i64) -> Fallible<()> {
        match self.optional::<i64>(key)? {
            Some(stated) if stated != found => {
                Err(format!("config `{key}` = {stated}, but the tensors say {found}").into())
            }
            _ => Ok(()),
        }
    }

    /// A choice that has one value here.
    pub fn expect_text(&self, key: &str, only: &str) -> Fallible<()> {
        match self.optional::<String>(key)? {
            Some(stated) if stated != only => {
                Err(format!("config `{key}` = {stated}, only {only} is there").into())
            }
            _ => Ok(()),
        }
    }

    /// Fails on keys that nobody read.
    pub fn finish(self) -> Fallible<()> {
        let read = self.read.into_inner();
        match self.map.keys().find(|key| !read.contains(*key)) {
            Some(key) => Err(format!("unknown config key `{key}`").into()),
            None => Ok(()),
        }
    }
}
