// SPDX-License-Identifier: GPL-2.0
//
// What the programs for a mesh's proxy and the steering agree on.
#pragma once

// IPv4 addresses, host byte order.
enum mesh_address {
	LOOPBACK4 = 0x7f000001, // 127.0.0.1
	// 127.115.115.6: where a mesh's proxy is made to connect from to 127.0.0.1. Nobody else
	// has a reason to bind it.
	MESH_DIALS_FROM = 0x7f737306,
};
