//! Maps that only the command line reads, opened by their pins.

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
};
use causeway::datapath::{Datapath, DatapathError};

/// A hash map, by its name.
pub(crate) fn hash<K: Pod, V: Pod>(
    datapath: &Datapath,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, DatapathError> {
    HashMap::try_from(Map::HashMap(open(datapath, name)?))
        .map_err(|source| DatapathError::Map { name, source })
}

/// An array, by its name.
pub(crate) fn array<V: Pod>(
    datapath: &Datapath,
    name: &'static str,
) -> Result<Array<MapData, V>, DatapathError> {
    Array::try_from(Map::Array(open(datapath, name)?)).map_err(|source| DatapathError::Map { name, source })
}

/// The element of a key, `None` when there is none.
pub(crate) fn element<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
) -> Result<Option<V>, DatapathError> {
    match map.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(DatapathError::Map { name, source }),
    }
}

/// Every element of a small map.
pub(crate) fn elements<K: Pod, V: Pod>(
    datapath: &Datapath,
    name: &'static str,
) -> Result<Vec<(K, V)>, DatapathError> {
    hash(datapath, name)?
        .iter()
        .collect::<Result<_, _>>()
        .map_err(|source| DatapathError::Map { name, source })
}

/// A map, by its name.
pub(crate) fn open(datapath: &Datapath, name: &'static str) -> Result<MapData, DatapathError> {
    let path = datapath.directory().join("maps").join(name);
    MapData::from_pin(&path).map_err(|source| DatapathError::Pin {
        path,
        source: source.into(),
    })
}
