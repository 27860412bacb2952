//! Which addresses each node has, as the list that azure-vnet-ipam reads of a file (`ipam.environment` `mas` or `fileIpam`):
//! for machines without a cloud that would say so.
//!
//! Masters have their chosen addresses; every other one is given as Azure gives it, the lowest free one of the subnet. A MAC
//! is two bytes of the operator's choice and the four of the node's own address, so it is told from the address and met
//! once in a network.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process,
};

use ipnet::Ipv4Net;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use thiserror::Error;

use super::reckon::{Chosen, Plan, is_azures};
use crate::go_json::mac_text;

/// What a list is called.
pub const FILE: &str = "interfaces.json";
/// A locally administered unicast address (IEEE 802, section 8.2).
pub const MAC_PREFIX: [u8; 2] = [0x02, 0x00];

/// A node's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeList {
    /// `master-0`, `<pool>-0` and so on.
    pub node: String,
    /// The file's content.
    pub content: Vec<u8>,
}

/// Why there are no lists.
#[derive(Debug, Error)]
pub enum InterfacesError {
    /// Pods have no addresses of the subnet.
    #[error("networkPlugin {0}: nodes have no list of pods' addresses, only Azure CNI has")]
    OtherPlugin(String),
    /// The prefix of a subnet is not known.
    #[error("the prefix of the subnet {0} is not known: say it, --subnet {0}=PREFIX")]
    UnknownPrefix(String),
    /// It does not fit.
    #[error("the subnet {0} is full")]
    Full(Ipv4Net),
    /// The directory has something.
    #[error("{} is not empty: --force replaces lists in it", .0.display())]
    NotEmpty(PathBuf),
    /// The directory has something that nobody replaces.
    #[error("{} has {}, which is no list of a node: nothing is replaced", .0.display(), .1.display())]
    Foreign(PathBuf, PathBuf),
    /// The system refused.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    interfaces: [Interface; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    mac_address: String,
    is_primary: bool,
    #[serde(rename = "IPSubnets")]
    subnets: [Subnet; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Subnet {
    prefix: Ipv4Net,
    #[serde(rename = "IPAddresses")]
    addresses: Vec<Address>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Address {
    address: Ipv4Addr,
    is_primary: bool,
}

/// The list of each node.
pub fn lists(plan: &Plan, mac_prefix: [u8; 2]) -> Result<Vec<NodeList>, InterfacesError> {
    if plan.network_plugin != "azure" {
        return Err(InterfacesError::OtherPlugin(plan.network_plugin.clone()));
    }
    let mut free: BTreeMap<&str, (Ipv4Net, Box<dyn Iterator<Item = Ipv4Addr>>)> = BTreeMap::new();
    for subnet in &plan.subnets {
        let prefix = subnet
            .prefix
            .ok_or_else(|| InterfacesError::UnknownPrefix(subnet.name.clone()))?;
        free.insert(
            &subnet.name,
            (prefix, Box::new(given(prefix, plan.chosen.as_ref()))),
        );
    }
    let mut lists = Vec::new();
    for (kind, pool) in plan.pools.iter().enumerate() {
        let Some((prefix, free)) = free
            .iter_mut()
            .find(|(name, _)| name.eq_ignore_ascii_case(&pool.subnet))
            .map(|(_, free)| free)
        else {
            return Err(InterfacesError::UnknownPrefix(pool.subnet.clone()));
        };
        for index in 0..pool.count {
            let chosen = plan
                .chosen
                .iter()
                .filter(|_| kind == 0)
                .find_map(|chosen| chosen.masters.get(index as usize));
            let own = chosen.copied().or_else(|| free.next());
            let others = free.take(pool.addresses_per_node.saturating_sub(1) as usize);
            let addresses: Vec<Ipv4Addr> = own.into_iter().chain(others).collect();
            if addresses.len() < pool.addresses_per_node.max(1) as usize {
                return Err(InterfacesError::Full(*prefix));
            }
            lists.push(NodeList {
                node: format!("{}-{index}", pool.name),
                content: content(*prefix, &addresses, mac_prefix),
            });
        }
    }
    Ok(lists)
}

/// What Azure gives, in its order.
fn given(prefix: Ipv4Net, chosen: Option<&Chosen>) -> impl Iterator<Item = Ipv4Addr> + use<> {
    let taken: Vec<Ipv4Addr> = chosen.iter().flat_map(|chosen| chosen.all()).collect();
    let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
    let addresses = (first..=last).map(Ipv4Addr::from_bits);
    addresses.filter(move |address| !is_azures(prefix, *address) && !taken.contains(address))
}

fn content(prefix: Ipv4Net, addresses: &[Ipv4Addr], mac_prefix: [u8; 2]) -> Vec<u8> {
    let own = addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
    let mut mac = [0; 6];
    mac[..2].copy_from_slice(&mac_prefix);
    mac[2..].copy_from_slice(&own.octets());
    let address = |(index, &address): (usize, &Ipv4Addr)| Address {
        address,
        is_primary: index == 0,
    };
    let document = Document {
        interfaces: [Interface {
            mac_address: mac_text(mac),
            is_primary: true,
            subnets: [Subnet {
                prefix,
                addresses: addresses.iter().enumerate().map(address).collect(),
            }],
        }],
    };
    // Numbers and strings alone: nothing that cannot be written.
    let mut content = serde_json::to_vec_pretty(&document).unwrap_or_default();
    content.push(b'\n');
    content
}

/// Writes the lists to `directory/<node>/interfaces.json`: all of them at once, or none.
///
/// The directory may be there if it is empty; with `force` also if it holds such lists alone, which then go.
pub fn write(directory: &Path, lists: &[NodeList], force: bool) -> Result<(), InterfacesError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| InterfacesError::Write { path, source }
    };
    let is_full = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed(directory)(error)),
    };
    if is_full && !force {
        return Err(InterfacesError::NotEmpty(directory.to_owned()));
    }
    // A link to a directory stays a link.
    let directory = &fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    if is_full {
        refuse_others(directory)?;
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let stage = directory.with_file_name(format!(".{name}.causeway-{}", process::id()));
    let staged = fill(&stage, lists).and_then(|()| {
        let flags = if is_full {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::empty()
        };
        renameat_with(CWD, &stage, CWD, directory, flags).map_err(|error| failed(directory)(error.into()))
    });
    // What is left there: the lists that were replaced, or those of an attempt that failed.
    fs::remove_dir_all(&stage).ok();
    staged
}

/// Refuses a directory in which anything is not a list of a node's.
fn refuse_others(directory: &Path) -> Result<(), InterfacesError> {
    let failed = |source| InterfacesError::Write {
        path: directory.to_owned(),
        source,
    };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let node = entry.map_err(failed)?.path();
        let foreign = || InterfacesError::Foreign(directory.to_owned(), node.clone());
        if !node.is_dir() || node.is_symlink() {
            return Err(foreign());
        }
        for entry in fs::read_dir(&node).map_err(failed)? {
            if entry.map_err(failed)?.file_name() != FILE {
                return Err(foreign());
            }
        }
    }
    Ok(())
}

fn fill(stage: &Path, lists: &[NodeList]) -> Result<(), InterfacesError> {
    let fill = |path: &Path, content: &[u8]| {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut file = File::create_new(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    for NodeList { node, content } in lists {
        let path = stage.join(node).join(FILE);
        fill(&path, content).map_err(|source| InterfacesError::Write { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr};

    use super::*;
    use crate::{
        ipam::source::{self, LocalNic, Settings},
        plan::{Outcome, plan},
        root::Root,
    };

    const THREE_MASTERS: &str = r#"{"apiVersion": "vlabs", "properties": {
        "orchestratorProfile": {"orchestratorType": "Kubernetes", "kubernetesConfig": {"clusterSubnet": "10.240.0.0/16"}},
        "masterProfile": {"count": 3}, "agentPoolProfiles": [{"name": "a", "count": 2,
            "kubernetesConfig": {"kubeletConfig": {"--max-pods": "10"}}}]}}"#;

    fn lists_of(text: &str) -> Vec<NodeList> {
        let Outcome { faults, plan } = plan(text.as_bytes(), &[]).unwrap();
        assert_eq!(faults, []);
        lists(&plan.unwrap(), MAC_PREFIX).unwrap()
    }

    /// What the address plug-in of a node with that address makes of the list.
    fn read(list: &NodeList, own: &str) -> BTreeSet<IpAddr> {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let path = root.path(source::INTERFACES);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &list.content).unwrap();
        let own: Ipv4Addr = own.parse().unwrap();
        let [c, d, e, f] = own.octets();
        let local = LocalNic {
            name: "eth0".to_owned(),
            mac: [2, 0, c, d, e, f],
            addresses: vec![own.into()],
            secondary: Vec::new(),
        };
        let answer = source::ask_at_once(&root, &Settings::new("mas"), &[local]);
        let mut list = answer.list.unwrap();
        assert_eq!(
            (list.pools.len(), list.skipped),
            (1, vec![]),
            "{:?}",
            answer.error
        );
        let pool = list.pools.remove(0);
        assert_eq!(
            (pool.interface.as_str(), pool.subnet.to_string().as_str()),
            ("eth0", "10.240.0.0/16")
        );
        pool.addresses
    }

    #[test]
    fn the_address_plug_in_reads_every_list_and_no_address_is_in_two() {
        let lists = lists_of(THREE_MASTERS);
        let names: Vec<&str> = lists.iter().map(|list| list.node.as_str()).collect();
        assert_eq!(names, ["master-0", "master-1", "master-2", "a-0", "a-1"]);
        let own = [
            "10.240.255.5",
            "10.240.255.6",
            "10.240.255.7",
            "10.240.0.94",
            "10.240.0.105",
        ];
        let mut all: BTreeSet<IpAddr> = own.iter().map(|own| own.parse().unwrap()).collect();
        for (list, own) in lists.iter().zip(own) {
            let pods = read(list, own);
            assert_eq!(pods.len(), if list.node.starts_with('m') { 30 } else { 10 });
            for address in pods {
                assert!(all.insert(address), "{address} of {} is another's too", list.node);
            }
        }
        // 3 x 31 and 2 x 11; the load balancer's is nobody's.
        assert_eq!(all.len(), 115);
        assert!(!all.contains(&"10.240.255.15".parse().unwrap()));
        assert_eq!(all.first().unwrap().to_string(), "10.240.0.4");
    }

    #[test]
    fn lists_come_all_at_once_and_replace_nothing_unless_told_to() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("lists");
        let lists = lists_of(THREE_MASTERS);
        let there = || fs::read_dir(home.path()).unwrap().count();
        write(&directory, &lists, false).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 5);
        assert_eq!(
            fs::read(directory.join("a-1").join(FILE)).unwrap(),
            lists[4].content
        );
        assert!(matches!(
            write(&directory, &lists, false),
            Err(InterfacesError::NotEmpty(_))
        ));
        write(&directory, &lists[..2], true).unwrap();
        assert_eq!(
            fs::read_dir(&directory).unwrap().count(),
            2,
            "those of before are gone"
        );
        fs::write(directory.join("notes.txt"), "mine").unwrap();
        assert!(matches!(
            write(&directory, &lists, true),
            Err(InterfacesError::Foreign(..))
        ));
        fs::remove_file(directory.join("notes.txt")).unwrap();
        fs::write(directory.join("master-0/key.pem"), "mine").unwrap();
        assert!(matches!(
            write(&directory, &lists, true),
            Err(InterfacesError::Foreign(..))
        ));
        assert_eq!(
            (there(), fs::read_dir(&directory).unwrap().count()),
            (1, 2),
            "nothing half-done stays"
        );
    }

    #[test]
    fn a_list_that_cannot_be_written_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let mut lists = lists_of(THREE_MASTERS);
        // Two of one name: the second cannot be made.
        lists[4].node = "a-0".to_owned();
        assert!(matches!(
            write(&home.path().join("lists"), &lists, false),
            Err(InterfacesError::Write { .. })
        ));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
