// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/access"
	"sidestep.dev/sidestep/manager/changes"
)

// HoldersConfig is what Holders need.
type HoldersConfig struct {
	Logins *Logins
	Guard  *access.Guard
	// Reviews look at rights while they are used; nil: what admission has checked holds.
	Reviews *access.Reviews
	// Older says that Intercepts of the version before, whose users nobody knows, may be served.
	Older bool
	// Grace is how long Intercepts for which nobody vouches are served.
	Grace time.Duration
	Log   *slog.Logger
	Now   func() time.Time
}

// Holders judge whether an Intercept is its holder's to have. They are safe for concurrent use.
type Holders struct {
	cfg     HoldersConfig
	changes *changes.Set[types.UID]

	mu       sync.Mutex
	policies map[string]force         // by name; nothing before the API server has answered
	judged   map[types.UID]*time.Time // since when nobody vouches for it; nil: somebody does
	denied   map[types.UID]map[denial]struct{}
}

// denial is what the API server has said last about one right of a user, whatever their groups were.
type denial struct {
	user string
	right
}

// force is what is known about a policy.
type force struct {
	inForce bool
	since   time.Time // what was created later, the policy has admitted
}

// NewHolders makes Holders; Run keeps what they know up to date.
func NewHolders(cfg HoldersConfig) *Holders {
	h := &Holders{cfg: cfg, policies: map[string]force{}, judged: map[types.UID]*time.Time{},
		denied: map[types.UID]map[denial]struct{}{}}
	if h.changes = changes.NewSet[types.UID](); cfg.Reviews != nil {
		h.changes = cfg.Reviews.Changes()
	}
	return h
}

// Changes returns the Intercepts that are to be judged again.
func (h *Holders) Changes() *changes.Set[types.UID] { return h.changes }

// Run follows the policies, and asks for rights again, until ctx is done.
func (h *Holders) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if h.cfg.Reviews != nil {
		wg.Go(func() { h.cfg.Reviews.Run(ctx) })
	}
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		h.follow(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// follow looks at the policies.
func (h *Holders) follow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	changed := false
	for _, name := range []string{access.HolderPolicy, access.RightsPolicy} {
		since, inForce, err := h.cfg.Guard.InForce(ctx, name)
		if err != nil {
			continue // what is known holds
		}
		now := force{inForce, since}
		h.mu.Lock()
		before, known := h.policies[name]
		h.policies[name] = now
		h.mu.Unlock()
		if known && before == now {
			continue
		}
		changed = true
		if !inForce {
			h.cfg.Log.Error("the API server does not vouch for intercepts: the admission policy is not in force",
				"policy", name)
		}
	}
	if !changed {
		return
	}
	h.mu.Lock()
	var all []types.UID
	for uid := range h.judged {
		all = append(all, uid)
	}
	h.mu.Unlock()
	h.changes.Add(all...)
}

// Forget forgets an Intercept.
func (h *Holders) Forget(uid types.UID) {
	h.mu.Lock()
	delete(h.judged, uid)
	delete(h.denied, uid)
	h.mu.Unlock()
	if h.cfg.Reviews != nil {
		h.cfg.Reviews.Follow(uid)
	}
}

// vouched reports whether a policy has admitted what was created then. Without a word of the API
// server, which it is asked for every second, there is no doubt yet.
func (h *Holders) vouched(policy string, created metav1.Time) (vouched, inForce bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, known := h.policies[policy]
	return !known || p.inForce && created.After(p.since), !known || p.inForce
}

// Judge says what an Intercept may have whose session is connected. It waits for nobody.
func (h *Holders) Judge(ic *v1alpha1.Intercept, keyHash string) access.Judgement {
	vouched, inForce := h.vouched(access.HolderPolicy, ic.CreationTimestamp)
	proofs := h.cfg.Logins.Proofs(keyHash, ic.Spec.Client.User)
	if len(proofs) > 0 && (inForce || h.cfg.Older) && h.cfg.Reviews != nil {
		h.known(ic.UID, nil)
		return h.review(ic, proofs)
	}
	if h.cfg.Reviews != nil {
		h.cfg.Reviews.Follow(ic.UID)
	}
	var j access.Judgement
	switch {
	case len(proofs) == 0 && h.cfg.Older, len(proofs) > 0 && vouched:
	case !inForce && !h.cfg.Older:
		j = refused(access.NotProven, "the admission policy %s, by which the API server vouches for users, is "+
			"missing or not in force", access.HolderPolicy)
		j.Advice = "ask who runs the cluster to upgrade the installation with `sidestep helm upgrade`"
	case vouched && ic.Spec.Client.User != "":
		j = refused(access.NotProven, "the intercept is user %q's, and the laptop has not proven to be theirs",
			ic.Spec.Client.User)
		j.Advice = "`sidestep quit` and `sidestep connect` as that user"
	default:
		return h.spare(ic)
	}
	h.known(ic.UID, nil)
	return j
}

func refused(reason, format string, args ...any) access.Judgement {
	return access.Judgement{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// known notes that an Intercept has been judged, and since when nobody vouches for it.
func (h *Holders) known(uid types.UID, since *time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.judged[uid] = since
}

// spare serves, for a while, an Intercept that is older than the policy or does not name its user.
func (h *Holders) spare(ic *v1alpha1.Intercept) access.Judgement {
	now := h.cfg.Now()
	h.mu.Lock()
	since := h.judged[ic.UID]
	h.mu.Unlock()
	if since == nil {
		since = &now
		h.cfg.Log.Warn("nobody vouches for whose intercept it is", "intercept", ic.Namespace+"/"+ic.Name,
			"holder", ic.Spec.Client.Holder, "servedFor", h.cfg.Grace)
	}
	h.known(ic.UID, since)
	if left := h.cfg.Grace - now.Sub(*since); left > 0 {
		return access.Judgement{Again: left}
	}
	j := refused(access.NotProven, "nobody vouches for whose the intercept is: it was created before the API "+
		"server did so, or by an older sidestep")
	j.Advice = "upgrade sidestep on the laptop, end the intercept and create another"
	return j
}

// right is something that an Intercept asks for.
type right struct {
	verb, subresource string
	what              string
}

var (
	toHave        = right{"create", "", "intercepts"}
	toToPod       = right{"get", "topod", "connections to ports of pods"}
	toWiretap     = right{"get", "wiretap", "copies of other people's requests"}
	toWholePort   = right{"get", "wholeport", "every request to a port"}
	toEnvironment = right{"get", "environment", "the container's environment"}
)

// asks lists the rights that an Intercept rests on, as the policies do. The first ones are for having
// it at all.
func asks(s *v1alpha1.InterceptSpec) (base, more []right) {
	base = []right{toHave}
	switch {
	case s.Wiretap:
		base = append(base, toWiretap)
	case s.Mechanism == v1alpha1.MechanismTCP || s.HTTP == nil ||
		len(s.HTTP.Headers) == 0 && everyPath(s.HTTP.Path):
		base = append(base, toWholePort)
	}
	if len(s.ToPod) > 0 {
		more = append(more, toToPod)
	}
	if s.Environment {
		more = append(more, toEnvironment)
	}
	return base, more
}

// anything matches the expressions that people write for any path.
var anything = regexp.MustCompile(`^[/^]{0,2}[.][*+][$]?$`)

// everyPath reports whether a condition plainly leaves out no path.
func everyPath(p *v1alpha1.PathMatch) bool {
	switch {
	case p == nil:
		return true
	case p.Prefix != nil:
		return *p.Prefix == "" || *p.Prefix == "/"
	default:
		return p.Regex != nil && anything.MatchString(*p.Regex)
	}
}

func (r right) question(p Proof, namespace string) access.Question {
	return access.May(p.User, p.Groups, namespace, r.verb, r.subresource)
}

// lacks says it as the API server does.
func (r right) lacks(user, namespace string) string {
	resource := "intercepts"
	if r.subresource != "" {
		resource += "/" + r.subresource
	}
	return fmt.Sprintf("user %q cannot %s resource %q in API group \"sidestep.dev\" in the namespace %q, "+
		"which is needed for %s", user, r.verb, resource, namespace, r.what)
}

// review judges by what the API server says about the rights of the users for whom the session is
// proven: an Intercept of an older laptop may be any of theirs. What has not been answered yet was
// admitted, or is not given.
func (h *Holders) review(ic *v1alpha1.Intercept, proofs []Proof) access.Judgement {
	base, more := asks(&ic.Spec)
	rights := slices.Concat(base, more)
	var questions []access.Question
	for _, p := range proofs {
		for _, r := range rights {
			questions = append(questions, r.question(p, ic.Namespace))
		}
	}
	answers := h.cfg.Reviews.Follow(ic.UID, questions...)
	h.recall(ic.UID, proofs, rights, answers)
	admitted, _ := h.vouched(access.RightsPolicy, ic.CreationTimestamp)
	if !admitted && accepted(ic) {
		admitted = true // by the manager before
	}
	var best access.Judgement
	for i, p := range proofs {
		j := judge(ic, p, rights, len(base), answers[i*len(rights):], admitted)
		if i == 0 || better(j, best) {
			best = j
		}
	}
	return best
}

// recall puts denials in place of answers that are not known yet. Another Login, with other groups, is
// another question, and must not give a right back until it is answered.
func (h *Holders) recall(uid types.UID, proofs []Proof, rights []right, answers []access.Answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range answers {
		d := denial{proofs[i/len(rights)].User, rights[i%len(rights)]}
		_, denied := h.denied[uid][d]
		switch {
		case !answers[i].Known && denied:
			answers[i] = access.Answer{Known: true}
		case answers[i].Known && answers[i].Allowed:
			delete(h.denied[uid], d)
		case answers[i].Known && h.denied[uid] == nil:
			h.denied[uid] = map[denial]struct{}{d: {}}
		case answers[i].Known:
			h.denied[uid][d] = struct{}{}
		}
	}
}

func accepted(ic *v1alpha1.Intercept) bool {
	return ic.Status.ObservedGeneration == ic.Generation && slices.ContainsFunc(ic.Status.Conditions,
		func(c metav1.Condition) bool {
			return c.Type == v1alpha1.ConditionAccepted && c.Status == metav1.ConditionTrue
		})
}

// judge judges by the rights of one user, of which the first few are for having the Intercept at all.
func judge(ic *v1alpha1.Intercept, p Proof, rights []right, base int, answers []access.Answer,
	admitted bool) access.Judgement {
	var j access.Judgement
	for i, r := range rights {
		if answers[i].Allowed || !answers[i].Known && admitted {
			continue
		}
		says := r.lacks(p.User, ic.Namespace)
		if !answers[i].Known {
			says = fmt.Sprintf("the API server has not said yet whether user %q may have %s", p.User, r.what)
		}
		switch {
		case i < base:
			j := refused(access.Forbidden, "%s", says)
			j.Advice = "ask who runs the cluster for that right"
			return j
		case r == toToPod:
			j.NoToPod = true
		case r == toEnvironment:
			j.NoEnvironment = true
		}
		j.Note = cmp.Or(j.Note, says)
	}
	return j
}

// better reports whether one judgement gives more than another.
func better(a, b access.Judgement) bool {
	gives := func(j access.Judgement) int {
		n := 0
		for _, not := range []bool{j.Refused(), j.Refused(), j.NoToPod, j.NoEnvironment} {
			if !not {
				n++
			}
		}
		return n
	}
	return gives(a) > gives(b)
}

// Environment returns why a session may not have the environment that its Intercept asks for, now, and
// otherwise the user who may; nobody knows that of an older laptop.
func (h *Holders) Environment(ctx context.Context, ic *v1alpha1.Intercept, keyHash string) (string, error) {
	proofs := h.cfg.Logins.Proofs(keyHash, ic.Spec.Client.User)
	if len(proofs) == 0 && h.cfg.Older {
		return "", nil
	}
	if len(proofs) == 0 {
		return "", status.Error(codes.PermissionDenied, "the laptop has not proven whose the intercept is")
	}
	if h.cfg.Reviews == nil {
		return proofs[0].User, nil
	}
	says := ""
	for _, p := range proofs {
		allowed, err := h.cfg.Reviews.Now(ctx, toEnvironment.question(p, ic.Namespace))
		if err != nil {
			return "", status.Error(codes.Unavailable, err.Error())
		}
		if allowed {
			return p.User, nil
		}
		says = cmp.Or(says, toEnvironment.lacks(p.User, ic.Namespace))
	}
	return "", status.Error(codes.PermissionDenied, says)
}

// User returns for whom an Intercept's session acts, if the API server vouches for that.
func (h *Holders) User(ic *v1alpha1.Intercept, keyHash string) string {
	if proofs := h.cfg.Logins.Proofs(keyHash, ic.Spec.Client.User); len(proofs) > 0 {
		return proofs[0].User
	}
	return ""
}
