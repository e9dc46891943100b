//! Our own parameter store: names in their order of registration, parameters and buffers, shared storage by alias.
//!
//! tch's `VarStore` loses the order, adopts a file's dtype when loading, stores a repeated name as `name__1` and panics
//! at a dot in a name; published checkpoints need the opposite of each.

use std::cell::RefCell;

use indexmap::IndexMap;
use tch::{no_grad, Device, Kind, Tensor};

use crate::{Init, ModelError};

/// What a name of the state dict stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// Trained.
    Parameter,
    /// Stored but not trained.
    Buffer,
    /// A second name of the entry with this name.
    Alias(String),
}

struct Entry {
    tensor: Tensor,
    kind: EntryKind,
    weight_decay: bool,
}

/// The named tensors of one network.
pub struct ParamStore {
    device: Device,
    /// Names and shapes only: every tensor is one zero, seen as often as its shape says.
    outline: bool,
    entries: IndexMap<String, Entry>,
}

impl ParamStore {
    /// Where the tensors lie.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The state dict with the kind of each entry, aliases included, in the reference's order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Tensor, &EntryKind)> {
        self.entries
            .iter()
            .map(|(name, e)| (name.as_str(), &e.tensor, &e.kind))
    }

    /// The tensor of that name; aliases count.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.get(name).map(|e| &e.tensor)
    }

    /// The parameters in order, each once. The tensors share storage with the network's.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        self.entries
            .iter()
            .filter(|(_, e)| e.kind == EntryKind::Parameter)
            .map(|(name, e)| (name.clone(), e.tensor.shallow_clone()))
            .collect()
    }

    /// Whether the reference lets weight decay act on this parameter: `A_log` and `D` of Mamba blocks are marked exempt.
    pub fn takes_weight_decay(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|e| e.weight_decay)
    }

    /// Number of trainable values, shared ones counted once.
    pub fn num_parameters(&self) -> i64 {
        self.entries
            .values()
            .filter(|e| e.kind == EntryKind::Parameter)
            .map(|e| e.tensor.numel() as i64)
            .sum()
    }

    /// Every name with its tensor, aliases included, in order. The tensors share storage with the network's.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.entries
            .iter()
            .map(|(name, e)| (name.clone(), e.tensor.shallow_clone()))
            .collect()
    }

    /// Every tensor once, under its first name, buffers included, in order. They share storage with the network's.
    pub fn stored(&self) -> Vec<(String, Tensor)> {
        self.entries
            .iter()
            .filter(|(_, e)| !matches!(e.kind, EntryKind::Alias(_)))
            .map(|(name, e)| (name.clone(), e.tensor.shallow_clone()))
            .collect()
    }

    /// Sets every gradient that exists to zero.
    pub fn zero_grad(&self) {
        self.trainable()
            .iter_mut()
            .for_each(|(_, tensor)| tensor.zero_grad());
    }
}

/// A place in the tree of names from which layers register their tensors.
pub struct Scope<'s> {
    store: &'s RefCell<ParamStore>,
    prefix: String,
}

impl Scope<'_> {
    /// Runs `make` on the root scope of an empty store and returns what it made with the filled store.
    pub fn build<T>(
        device: Device,
        make: impl FnOnce(&Scope) -> Result<T, ModelError>,
    ) -> Result<(T, ParamStore), ModelError> {
        Self::build_as(device, false, make)
    }

    /// [`build`](Self::build) for names and shapes alone, to be described and not to be run.
    pub fn outline<T>(
        make: impl FnOnce(&Scope) -> Result<T, ModelError>,
    ) -> Result<(T, ParamStore), ModelError> {
        Self::build_as(Device::Cpu, true, make)
    }

    /// [`build`](Self::build), or with `outline` the names and shapes alone: nothing to compute with, but a network of
    /// any size takes no memory.
    pub(crate) fn build_as<T>(
        device: Device,
        outline: bool,
        make: impl FnOnce(&Scope) -> Result<T, ModelError>,
    ) -> Result<(T, ParamStore), ModelError> {
        let store = RefCell::new(ParamStore {
            device,
            outline,
            entries: IndexMap::new(),
        });
        let made = make(&Scope {
            store: &store,
            prefix: String::new(),
        })?;
        Ok((made, store.into_inner()))
    }

    /// The scope below this one; an empty name is this one.
    pub fn sub(&self, name: impl std::fmt::Display) -> Scope<'_> {
        Scope {
            store: self.store,
            prefix: self.path(&name.to_string()),
        }
    }

    fn path(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.prefix.clone(),
            _ => format!("{}.{name}", self.prefix),
        }
    }

    /// Registers a parameter.
    pub fn parameter(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor, ModelError> {
        self.register(name, shape, init, EntryKind::Parameter, true)
    }

    /// Registers a parameter that weight decay leaves alone.
    pub fn undecayed(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor, ModelError> {
        self.register(name, shape, init, EntryKind::Parameter, false)
    }

    /// Registers a parameter with these first values.
    pub fn given(&self, name: &str, value: &Tensor, decayed: bool) -> Result<Tensor, ModelError> {
        let tensor = self.register(
            name,
            &value.size(),
            Init::Constant(0.0),
            EntryKind::Parameter,
            decayed,
        )?;
        // an outline has no memory to fill
        if !self.store.borrow().outline {
            no_grad(|| tensor.shallow_clone().f_copy_(value))?;
        }
        Ok(tensor)
    }

    /// Registers a tensor that is stored but not trained.
    pub fn buffer(&self, name: &str, shape: &[i64], init: Init) -> Result<Tensor, ModelError> {
        self.register(name, shape, init, EntryKind::Buffer, false)
    }

    /// Registers a whole number that is stored but not trained; 0 at first.
    pub fn counter(&self, name: &str) -> Result<Tensor, ModelError> {
        let device = self.store.borrow().device;
        let tensor = Tensor::f_zeros([0i64; 0], (Kind::Int64, device))?;
        self.insert(
            self.path(name),
            Entry {
                tensor: tensor.shallow_clone(),
                kind: EntryKind::Buffer,
                weight_decay: false,
            },
        )?;
        Ok(tensor)
    }

    fn register(
        &self,
        name: &str,
        shape: &[i64],
        init: Init,
        kind: EntryKind,
        weight_decay: bool,
    ) -> Result<Tensor, ModelError> {
        let path = self.path(name);
        let (device, outline) = {
            let store = self.store.borrow();
            (store.device, store.outline)
        };
        let tensor = match outline {
            true => Tensor::f_zeros([1], (Kind::Float, device))?.f_expand(shape, false)?,
            false => init.make(shape, device)?,
        };
        let tensor = tensor.set_requires_grad(kind == EntryKind::Parameter);
        self.insert(
            path,
            Entry {
                tensor: tensor.shallow_clone(),
                kind,
                weight_decay,
            },
        )?;
        Ok(tensor)
    }

    /// Gives every entry below `from` a second name below `to`, in order; both are relative to this scope.
    pub fn alias(&self, from: &str, to: &str) -> Result<(), ModelError> {
        let (from, to) = (self.path(from), self.path(to));
        let found: Vec<_> = {
            let store = self.store.borrow();
            let below = |name: &str| {
                name.strip_prefix(&from)
                    .filter(|rest| rest.starts_with('.'))
                    .map(str::to_string)
            };
            let second = |name: &String, e: &Entry| {
                let of = match &e.kind {
                    EntryKind::Alias(of) => of.clone(),
                    _ => name.clone(),
                };
                Entry {
                    tensor: e.tensor.shallow_clone(),
                    kind: EntryKind::Alias(of),
                    weight_decay: false,
                }
            };
            store
                .entries
                .iter()
                .filter_map(|(n, e)| Some((format!("{to}{}", below(n)?), second(n, e))))
                .collect()
        };
        if found.is_empty() {
            return Err(ModelError::DanglingAlias {
                alias: to,
                of: from,
            });
        }
        found
            .into_iter()
            .try_for_each(|(name, entry)| self.insert(name, entry))
    }

    fn insert(&self, path: String, entry: Entry) -> Result<(), ModelError> {
        let mut store = self.store.borrow_mut();
        if store.entries.contains_key(&path) {
            return Err(ModelError::DuplicateName(path));
        }
        store.entries.insert(path, entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_order_and_repeat_never() {
        let made = Scope::build(Device::Cpu, |root| {
            let a = root.sub("z");
            let _ = a.parameter("weight", &[2, 3], Init::Constant(1.0))?;
            let _ = a.buffer("count", &[], Init::Constant(0.0))?;
            let _ = root
                .sub("a")
                .undecayed("weight", &[4], Init::Constant(1.0))?;
            root.alias("z", "a.z")?;
            root.alias("a.z", "b")
        });
        let ((), store) = made.unwrap();
        let names: Vec<_> = store.entries().map(|(n, _, _)| n.to_string()).collect();
        assert_eq!(
            names,
            [
                "z.weight",
                "z.count",
                "a.weight",
                "a.z.weight",
                "a.z.count",
                "b.weight",
                "b.count"
            ]
        );
        assert_eq!(store.num_parameters(), 10);
        assert_eq!(store.trainable().len(), 2);
        assert!(store.takes_weight_decay("z.weight") && !store.takes_weight_decay("a.weight"));
        let b = store.entries().find(|(n, _, _)| *n == "b.weight").unwrap();
        assert_eq!(b.2, &EntryKind::Alias("z.weight".into()));
        assert_eq!(b.1.data_ptr(), store.get("z.weight").unwrap().data_ptr());
    }

    #[test]
    fn duplicates_and_dangling_aliases_are_errors() {
        let twice = Scope::build(Device::Cpu, |root| {
            let _ = root.parameter("w", &[1], Init::Constant(0.0))?;
            root.parameter("w", &[1], Init::Constant(0.0))
        });
        assert!(matches!(twice, Err(ModelError::DuplicateName(n)) if n == "w"));
        let dangling = Scope::build(Device::Cpu, |root| root.alias("nothing", "b"));
        assert!(matches!(dangling, Err(ModelError::DanglingAlias { .. })));
    }
}
