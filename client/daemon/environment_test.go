// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
)

var large = []byte("LARGE=" + strings.Repeat("x", 3<<20))

func given(req *clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error) {
	return &clientpb.EnvironmentReply{
		Variables: [][]byte{[]byte("OF=" + req.GetNamespace() + "/" + req.GetName() + "/" +
			req.GetInterceptUid()), []byte("B=\xff\n"), large},
		Declared: []string{"B"}, Container: "app", Pod: "orders-0",
	}, nil
}

// onlyWithout refuses those who ask for an environment, as the cluster's policy does.
func onlyWithout(_ clienttest.Call, object *unstructured.Unstructured) string {
	if asks, _, _ := unstructured.NestedBool(object.Object, "spec", "environment"); asks {
		return `ValidatingAdmissionPolicy 'sidestep-environment' with binding 'sidestep-environment' denied request: ` +
			`User "dev" cannot get resource "intercepts/environment" in API group "sidestep.dev" in the namespace "shop"`
	}
	return ""
}

func wants(environment daemonpb.InterceptRequest_Environment) *daemonpb.InterceptRequest {
	return &daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000, Environment: environment}
}

func TestEnvironment(t *testing.T) {
	const optional, required = daemonpb.InterceptRequest_IF_ALLOWED, daemonpb.InterceptRequest_REQUIRED
	t.Run("comes with the intercept that asks for it", func(t *testing.T) {
		w := connected(t)
		w.manager.Environments(given)
		w.mustIntercept(wants(required))
		object := w.object()
		assert.True(t, object.Spec.Environment)
		assert.Equal(t, [][]byte{[]byte("OF=shop/" + object.Name + "/" + string(object.UID)),
			[]byte("B=\xff\n"), large}, w.environment.GetVariables())
		assert.Equal(t, []string{"B"}, w.environment.GetDeclared())
		assert.Equal(t, "app", w.environment.GetContainer())

		w.mustIntercept(wants(0))
		assert.Nil(t, w.environment)
		assert.False(t, w.object().Spec.Environment, "nobody can read it any more")
		w.mustIntercept(wants(optional))
		assert.NotNil(t, w.environment, "it can be asked for later")
	})
	t.Run("is not asked for without need", func(t *testing.T) {
		w := connected(t)
		w.manager.Environments(func(*clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error) {
			t.Error("it was asked for")
			return nil, status.Error(codes.Internal, "")
		})
		w.mustIntercept(wants(0))
		assert.False(t, w.object().Spec.Environment)
	})
	for name, c := range map[string]struct {
		prepare func(*world)
		reason  string
		says    string
	}{
		"for lack of the right": {func(w *world) { w.api.Admit(onlyWithout) }, reason.Forbidden,
			"dev may not get intercepts/environment.sidestep.dev in namespace shop — environments of containers may not be read by everybody; ask who runs the cluster for the ClusterRole sidestep-environment there"},
		"for an old manager": {func(w *world) { w.manager.Environments(nil) }, reason.NoEnvironment,
			"cannot read the environment of the container: the traffic manager (v9) is older than this sidestep and does not provide environments; everything is as it was — run `sidestep helm upgrade`"},
		"for want of a pod": {func(w *world) {
			w.manager.Environments(func(*clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error) {
				return nil, status.Error(codes.FailedPrecondition, "no pod of Deployment orders is ready")
			})
		}, reason.NoEnvironment, "cannot read the environment of the container: no pod of Deployment orders is ready; everything is as it was — try again, or leave out --env-file and --env-json"},
	} {
		t.Run("that cannot be had "+name, func(t *testing.T) {
			w := connected(t)
			w.manager.Environments(given)
			c.prepare(w)
			_, _, err := w.intercept(t.Context(), wants(required))
			assert.Equal(t, c.reason, reason.Of(err))
			assert.Equal(t, c.says, status.Convert(err).Message())
			assert.Empty(t, w.api.Intercepts(), "nothing is left half made")

			_, said, err := w.intercept(t.Context(), wants(optional))
			require.NoError(t, err)
			assert.Nil(t, w.environment)
			assert.Contains(t, strings.Join(said, "\n"),
				"warning: the environment of the container is not there: ")
			assert.Len(t, w.api.Intercepts(), 1)

			_, _, err = w.intercept(t.Context(),
				&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9001, Environment: required})
			assert.Equal(t, c.reason, reason.Of(err))
			assert.Equal(t, v1alpha1.Destination{Address: "127.0.0.1", Port: 9000},
				w.object().Spec.Destination, "an intercept that was there stays as it was")
		})
	}
}
