// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFindMirror(t *testing.T) {
	const deb822 = `Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
`
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  Mirror
		err   string
	}{
		{
			name:  "stanzas",
			files: map[string]string{"apt/sources.list.d/debian.sources": deb822},
			want:  Mirror{"http://mirror.example/debian", "http://mirror.example/security"},
		},
		{
			name: "one line each, other vendors' among them",
			files: map[string]string{
				"apt/sources.list.d/a-vendor.list": "deb https://vendor.example/apt anything main\n",
				"apt/sources.list": "# deb http://old.example/debian bookworm main\ndeb-src http://src.example/debian bookworm main\n" +
					"deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib # ours\n",
			},
			want: Mirror{"http://mirror.example/debian", "http://mirror.example/debian-security"},
		},
		{
			name:  "by the name of stable",
			files: map[string]string{"apt/sources.list": "deb http://mirror.example/debian stable main\ndeb http://mirror.example/s stable-security main\n"},
			want:  Mirror{"http://mirror.example/debian", "http://mirror.example/s"},
		},
		{
			name:  "another distribution",
			files: map[string]string{"apt/sources.list": "deb http://mirror.example/other noble main\n"},
			err:   "no mirror of Debian bookworm",
		},
		{
			name:  "disabled",
			files: map[string]string{"apt/sources.list.d/debian.sources": "Enabled: no\n" + deb822[:60]},
			err:   "no mirror of Debian bookworm",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			etc := fstest.MapFS{"os-release": {Data: []byte("NAME=\"Debian\"\nVERSION_CODENAME=bookworm\n")}}
			for name, text := range tc.files {
				etc[name] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := FindMirror(etc)
			if tc.err != "" {
				assert.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tc.want, got)
		})
	}
}

func TestPick(t *testing.T) {
	const index = `Package: linux-image-5.10.0-43-cloud-amd64
Version: 5.10.259-1
Depends: kmod

Package: linux-image-5.10.0-46-cloud-amd64
Version: 5.10.262-1
Depends: kmod, linux-base (>= 4.3~)

Package: linux-image-5.10-cloud-amd64
Version: 5.10.300-1
Depends: linux-image-5.10.0-46-cloud-amd64 (= 5.10.262-1)

Package: linux-image-7.2.11+deb13-cloud-amd64
Version: 7.2.11-1~bpo13+1

Package: linux-image-7.2.9+deb13-cloud-amd64
Version: 7.2.9-1~bpo13+1
Depends: dracut | initramfs-tools, linux-base-7.2.9+deb13-cloud-amd64 (= 7.2.9-1~bpo13+1), linux-binary-7.2.9+deb13-cloud-amd64
 (= 7.2.9-1~bpo13+1), linux-modules-7.2.9+deb13-cloud-amd64 (= 7.2.9-1~bpo13+1)
`
	for series, want := range map[string]string{"5.10": "5.10.262-1", "7.2": "7.2.11-1~bpo13+1",
		Newest: "7.2.11-1~bpo13+1"} {
		got, err := pick(index, series)
		require.NoError(t, err)
		assert.Equal(t, want, got.version, series)
	}
	_, err := pick(index, "5.1")
	assert.ErrorContains(t, err, "no kernel 5.1 among")
}

func TestSplitPackagesAreFetchedTogether(t *testing.T) {
	p := packaged{name: "linux-image-7.2.9+deb13-cloud-amd64", version: "7.2.9-1",
		depends: "dracut | initramfs-tools, " +
			"linux-base-7.2.9+deb13-cloud-amd64 (= 7.2.9-1),linux-binary-7.2.9+deb13-cloud-amd64 (= 7.2.9-1), linux-modules-7.2.9+deb13-cloud-amd64 (= 7.2.9-1)"}
	assert.Equal(t, []string{"linux-image-7.2.9+deb13-cloud-amd64=7.2.9-1",
		"linux-binary-7.2.9+deb13-cloud-amd64=7.2.9-1",
		"linux-modules-7.2.9+deb13-cloud-amd64=7.2.9-1"}, p.archives())
	assert.Equal(t, "7.2", p.series())
}
