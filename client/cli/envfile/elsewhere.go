// SPDX-License-Identifier: Apache-2.0

package envfile

import (
	"regexp"
	"slices"
	"strings"
)

// Why a variable of the container is left out wherever the environment goes.
const (
	whyNoName   = "that is not the name of a variable"
	whyRedirect = "programs of this laptop would load code or take their settings from it"
)

// Name matches names of variables. Any other name, such as bash's BASH_FUNC_make%%, is for one
// program to read, and not for the app.
var Name = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// aboutThePlace are variables that describe where a process runs, and not what it has to do:
// elsewhere they are wrong. Every container has some of them, so leaving them out is not reported.
var aboutThePlace = set(`PATH HOME HOSTNAME PWD OLDPWD SHLVL _ SHELL USER LOGNAME TERM TMPDIR
	LD_LIBRARY_PATH LD_PRELOAD CLASSPATH GEM_HOME GEM_PATH GOPATH GOROOT JAVA_HOME NODE_PATH PYTHONHOME
	PYTHONPATH`)

// A container's process can write anything into its own environment, and that is what is read.
// Whoever takes over a pod must not run code on the laptop of its developer. These variables make
// shells, interpreters, linkers and tools load code, or connect to another place than the developer
// means. They are compared in upper case, because Windows ignores case, and the names of proxies
// and npm's settings come in both.
var (
	redirectPrefixes = strings.Fields(`LD_ DYLD_ BASH_ GLIBC_ PYTHON PERL RUBY GEM_ BUNDLE_ NPM_
		YARN_ PNPM_ COREPACK_ DENO_ BUN_ GIT_ SSH_ DOCKER_ BUILDKIT_ BUILDX_ COMPOSE_ CONTAINERS_ PODMAN_
		KUBECTL_ HELM_ TF_CLI_ CLOUDSDK_ GRADLE_ MAVEN_ SBT_ CATALINA_ JDK_ CORECLR_ COR_PROFILER COMPLUS_ NUGET_
		MSBUILD LUA_ RUSTC RUSTUP_ CARGO_ CGO_ CMAKE_ PKG_CONFIG OPENSSL_ PIP_ UV_ CONDA_ POETRY_
		PIPENV_ VIRTUALENV_ XDG_ GTK_ GIO_ QT_ R_LIBS R_PROFILE R_ENVIRON JULIA_ ERL_ ELECTRON_ TELEPRESENCE_ SIDESTEP_`)
	redirectSuffixes = strings.Fields(`OPT OPTS OPTION OPTIONS _PROXY CFLAGS CXXFLAGS CPPFLAGS LDFLAGS
		_CA_BUNDLE _EXTRA_CA_CERTS _ASKPASS _PRELOAD _STARTUP_HOOKS`)
	redirectNames = set(`PATH HOME SHELL ENV IFS CDPATH GLOBIGNORE PROMPT_COMMAND PS0 PS1 PS2 PS3 PS4 FPATH
		ZDOTDIR LESS LESSOPEN LESSCLOSE LESSKEY EDITOR VISUAL PAGER MANPAGER BROWSER TERMINFO TERMCAP INPUTRC GCONV_PATH LOCPATH NLSPATH
		HOSTALIASES RESOLV_HOST_CONF
		CLASSPATH JAVA_HOME JAVACMD M2_HOME PHPRC PHP_INI_SCAN_DIR GUILE_LOAD_PATH TCLLIBPATH
		NODE_PATH NODE_TLS_REJECT_UNAUTHORIZED NODE_REPL_EXTERNAL_MODULE DOTNET_ROOT DOTNET_ADDITIONAL_DEPS
		DOTNET_SHARED_STORE ASPNETCORE_HOSTINGSTARTUPASSEMBLIES
		GOFLAGS GOPATH GOROOT GOENV GOPROXY GOPRIVATE GONOSUMDB GONOPROXY GOSUMDB GOINSECURE GOTOOLCHAIN
		GOBIN GOCACHE GOMODCACHE GOWORK RUSTFLAGS RUSTDOCFLAGS MAKE MAKEFLAGS MAKEFILES MFLAGS GNUMAKEFLAGS
		CC CXX CPP LD AR AS FC C_INCLUDE_PATH CPATH CPLUS_INCLUDE_PATH LIBRARY_PATH COMPILER_PATH GCC_EXEC_PREFIX
		KUBECONFIG KUBE_EDITOR CONTAINER_HOST SSL_CERT_FILE SSL_CERT_DIR SSLKEYLOGFILE CURL_HOME WGETRC
		AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE BOTO_CONFIG AZURE_CONFIG_DIR
		VIRTUAL_ENV VIMINIT EXINIT PSQLRC PGSYSCONFDIR PGSERVICEFILE MYSQL_HOME RIPGREP_CONFIG_PATH`)
)

func set(words string) map[string]bool {
	s := map[string]bool{}
	for _, word := range strings.Fields(words) {
		s[word] = true
	}
	return s
}

// redirects reports whether programs load code, or take settings that lead elsewhere, from a
// variable of that name.
func redirects(name string) bool {
	name = strings.ToUpper(name)
	return redirectNames[name] ||
		slices.ContainsFunc(redirectPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) ||
		slices.ContainsFunc(redirectSuffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}

// Elsewhere returns the part of a container's environment that is useful on a laptop, and what it
// leaves out that the user might miss. Names in keep stay in any case. Variables about the place
// where the container's process runs stay if the pod's specification declares them, because someone
// meant them.
func Elsewhere(all []Variable, declared, keep []string) (kept []Variable, left []Left) {
	for _, v := range all {
		switch {
		case !Name.MatchString(v.Name):
			left = append(left, Left{v, whyNoName})
		case slices.Contains(keep, v.Name):
			kept = append(kept, v)
		case aboutThePlace[v.Name] && !slices.Contains(declared, v.Name):
		case redirects(v.Name):
			left = append(left, Left{v, whyRedirect})
		default:
			kept = append(kept, v)
		}
	}
	return kept, left
}
