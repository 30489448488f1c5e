// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// errRedirected means that steering by TC would bypass the pod's own NAT or TPROXY rules.
var errRedirected = errors.New(
	"iptables or nftables in the pod redirect what arrives (a mesh's sidecar?), and TC would choose before them: use --datapath=sk_lookup for this node")

// redirected returns errRedirected if the namespace of the calling thread has rules that change the
// destination of incoming packets. Of legacy iptables it only sees that the table exists.
func redirected() error {
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		names, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err == nil && slices.ContainsFunc(strings.Fields(string(names)),
			func(name string) bool { return name == "nat" || name == "mangle" }) {
			return errRedirected
		}
	}
	chains := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	chains.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	replies, err := chains.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a kernel without nftables
	}
	if err != nil {
		return fmt.Errorf("list the chains of nftables: %w", err)
	}
	if slices.ContainsFunc(replies, changesDestination) {
		return errRedirected
	}
	rules := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	rules.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	if replies, err = rules.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return fmt.Errorf("list the rules of nftables: %w", err)
	}
	if slices.ContainsFunc(replies, picksSocket) {
		return errRedirected
	}
	return nil
}

// picksSocket reports whether a rule passes incoming packets to a transparent proxy, as an nftables
// expression or as an iptables target.
func picksSocket(rule []byte) bool {
	return bytes.Contains(rule, []byte("tproxy\x00")) || bytes.Contains(rule, []byte("TPROXY\x00"))
}

// changesDestination reports whether a chain is a NAT chain for incoming packets.
func changesDestination(chain []byte) bool {
	if len(chain) < nl.SizeofNfgenmsg {
		return false
	}
	attributes, err := nl.ParseRouteAttr(chain[nl.SizeofNfgenmsg:])
	if err != nil {
		return false
	}
	nat, arriving := false, false
	for _, a := range attributes {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_CHAIN_TYPE:
			nat = strings.TrimRight(string(a.Value), "\x00") == "nat"
		case unix.NFTA_CHAIN_HOOK:
			hook, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return false
			}
			for _, h := range hook {
				if h.Attr.Type == unix.NFTA_HOOK_HOOKNUM {
					arriving = string(h.Value) == "\x00\x00\x00\x00" // NF_INET_PRE_ROUTING
				}
			}
		}
	}
	return nat && arriving
}
