// SPDX-License-Identifier: Apache-2.0

package envfile

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hostile are variables with which whoever controls a container could take over the laptop.
var hostile = []string{
	"LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "BASH_ENV", "ENV",
	"PROMPT_COMMAND", "PS4", "IFS", "SHELLOPTS", "ZDOTDIR", "PATH", "HOME", "SHELL", "EDITOR", "PAGER", "LESSOPEN",
	"NODE_OPTIONS", "NODE_PATH", "NODE_EXTRA_CA_CERTS", "npm_config_registry", "NPM_CONFIG_PREFIX",
	"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "JAVA_OPTS", "MAVEN_OPTS", "CLASSPATH", "JAVA_HOME",
	"PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PERL5LIB", "PERL5OPT", "PERL5DB", "RUBYOPT", "RUBYLIB",
	"BUNDLE_GEMFILE", "GEM_HOME", "LUA_INIT", "PHPRC", "DOTNET_STARTUP_HOOKS", "CORECLR_PROFILER_PATH",
	"GIT_SSH_COMMAND", "GIT_EXTERNAL_DIFF", "GIT_CONFIG_COUNT", "SSH_ASKPASS", "SSH_AUTH_SOCK", "SUDO_ASKPASS",
	"DOCKER_HOST", "DOCKER_CONFIG", "COMPOSE_FILE", "CONTAINER_HOST", "KUBECONFIG", "HELM_PLUGINS",
	"GOFLAGS", "GOPROXY", "RUSTC_WRAPPER", "CARGO_HOME", "MAKEFLAGS", "CC", "LDFLAGS", "PKG_CONFIG_PATH",
	"HTTP_PROXY", "https_proxy", "ALL_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE",
	"REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "OPENSSL_CONF", "XDG_CONFIG_HOME", "PIP_INDEX_URL",
	"SIDESTEP_DAEMON_SOCKET", "GLIBC_TUNABLES",
}

// harmless are variables that apps are configured by, some of them rather like the others.
var harmless = []string{
	"DATABASE_URL", "PORT", "NODE_ENV", "RAILS_ENV", "DOTNET_ENVIRONMENT", "ASPNETCORE_ENVIRONMENT", "RUST_LOG",
	"GODEBUG", "GOMAXPROCS", "AWS_REGION", "AWS_ACCESS_KEY_ID", "PGHOST", "MYSQL_HOST", "REDIS_URL", "JAVA_VERSION",
	"FEATURE_FLAGS", "KUBERNETES_SERVICE_HOST", "ORDERS_SERVICE_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "my.key-1",
	"ENVIRONMENT", "PATHS", "TZ", "LANG", "SPRING_PROFILES_ACTIVE", "LOG_LEVEL", "LDAP_URL", "_private",
}

func named(names []string, value string) []Variable {
	var all []Variable
	for _, name := range names {
		all = append(all, Variable{name, value})
	}
	return all
}

func namesOf(left []Left) []string {
	var names []string
	for _, l := range left {
		names = append(names, l.Name)
	}
	return names
}

func TestWhatLoadsCodeOrLeadsElsewhereIsLeftOut(t *testing.T) {
	kept, left := Elsewhere(named(hostile, "/x"), hostile, nil)
	assert.Empty(t, kept, "though the specification declares them: the process can have changed their values")
	assert.Equal(t, hostile, namesOf(left))
	kept, left = Elsewhere(named(hostile, "/x"), nil, hostile)
	assert.Equal(t, named(hostile, "/x"), kept, "who names them has them")
	assert.Empty(t, left)
	kept, left = Elsewhere(named(harmless, "x"), nil, nil)
	assert.Equal(t, named(harmless, "x"), kept)
	assert.Empty(t, left)
}

func TestNamesThatAreNoneAreLeftOut(t *testing.T) {
	none := []string{"BASH_FUNC_make%%", "a b", "1A", "-x", ".x", "A\x1b[2J", "é", "A;id", "x$(id)", "A\nB", "A\rB"}
	kept, left := Elsewhere(named(none, "x"), none, none)
	assert.Empty(t, kept, "not even if they are asked for")
	assert.Equal(t, none, namesOf(left))
	for _, l := range left {
		assert.Equal(t, whyNoName, l.Why)
	}
}

func TestWhatIsAboutThePlaceIsLeftOutWithoutAWord(t *testing.T) {
	all := named([]string{"HOME", "HOSTNAME", "PATH", "TMPDIR"}, "x")
	kept, left := Elsewhere(all, nil, nil)
	assert.Empty(t, kept)
	assert.Empty(t, left)
	kept, left = Elsewhere(all, []string{"HOSTNAME", "PATH", "TMPDIR"}, nil)
	assert.Equal(t, named([]string{"HOSTNAME", "TMPDIR"}, "x"), kept, "somebody meant it")
	assert.Equal(t, []string{"PATH"}, namesOf(left))
}

// A container that says what bash is to run, and what make is, gets nothing run.
func TestAShellRunsNothingOfTheContainers(t *testing.T) {
	bash, err := exec.LookPath("bash")
	require.NoError(t, err)
	kept, _ := Elsewhere(Parse([][]byte{
		[]byte("BASH_ENV=$(echo CODE-OF-THE-CONTAINER >&2)"), []byte("BASH_FUNC_true%%=() { echo " +
			"OF-THE-CONTAINER; }"),
		[]byte("ENV=$(echo CODE-OF-THE-CONTAINER >&2)"), []byte("PS4=$(echo CODE-OF-THE-CONTAINER >&2)"),
		[]byte("GREETING=hello"),
	}), []string{"BASH_ENV", "ENV", "PS4"}, nil)
	cmd := exec.Command(bash, "-xc", "echo $GREETING; true")
	cmd.Env = os.Environ()
	for _, v := range kept {
		cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err)
	assert.NotContains(t, string(out), "CONTAINER")
	assert.Contains(t, string(out), "hello\n")
}
